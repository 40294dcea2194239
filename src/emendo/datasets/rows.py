"""From the text of a file to its rows: JSON in several forms, tables, YAML, told apart by what the text begins with.

A row that cannot be parsed is handed on with the reason; only a text that cannot be divided into rows is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from emendo.arguments import checked
from emendo.datasets.csv_rows import header_of, table_rows
from emendo.datasets.json_rows import LINE_END, Row, are_lines, line_rows, list_rows, object_rows, skip_blank
from emendo.errors import DatasetError
from emendo.io import strict_yaml

_YAML = re.compile(r"---[ \t]*(?:[\r\n]|$)|-[ \t]+[\w\"'{&]|[A-Za-z_]\w*:(?:[ \t]|[\r\n]|$)")
"""How a list of mappings, or a mapping with rows below a key, begins."""

_MOST_YAML = 16 * 2**20
"""Characters; read, they take a hundred times as much memory, and minutes."""

_SHEET_MARK = re.compile(r"sep=.[ \t]*(?:\r\n|\r|\n)", re.IGNORECASE)
"""The line by which a spreadsheet says what is between its cells; the header says it too."""


@checked
def split_rows(text: str, source: str) -> tuple[str, Iterator[Row]]:
    """The container of a text and its rows.

    ``"json"`` begins with ``[``; ``"jsonl"`` is one object a line; ``"json objects"`` are objects over several lines,
    one after another; ``"csv"`` has a first line with names of fields; ``"yaml"`` begins like a list or mapping of it.
    Everything else is taken for one JSON object a line.

    Args:
        text: The decoded text.
        source: How errors name it.

    Raises:
        DatasetError: The text cannot be divided into rows; a JSON list raises when it is read up to there.
    """
    begin = skip_blank(text)
    if text[begin : begin + 1] == "[":
        return "json", list_rows(text, begin, source)
    if text[begin : begin + 1] == "{":
        return (
            ("jsonl", line_rows(text)) if are_lines(text, begin) else ("json objects", object_rows(text, begin, source))
        )
    mark = _SHEET_MARK.match(text, begin)
    begin = mark.end() if mark else begin
    first = LINE_END.split(text[begin : begin + 2**16], maxsplit=1)[0]
    header = header_of(first)
    if header is not None:
        return "csv", table_rows(text, begin, header, source)
    if _YAML.match(text, begin):
        return "yaml", _yaml_rows(text, source)
    return "jsonl", line_rows(text)


def _yaml_rows(text: str, source: str) -> Iterator[Row]:
    if len(text) > _MOST_YAML:
        raise DatasetError(f"{source}: has {len(text):,} characters of YAML, expected at most {_MOST_YAML:,}; use JSON")
    try:
        content = strict_yaml.loads(text, as_text=True)
    except ValueError as error:
        raise DatasetError(f"{source}: begins like YAML and cannot be read: {' '.join(str(error).split())}") from error
    for number, value in enumerate(content if isinstance(content, list) else [content], start=1):
        reason = "" if isinstance(value, dict) else f"expected a mapping with fields, found {type(value).__name__}"
        yield Row(number, None if reason else value, reason)
