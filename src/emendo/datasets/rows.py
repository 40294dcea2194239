"""From the text of a file to its rows: JSON lines, a JSON list or CSV, told apart by what the text begins with.

A row that cannot be parsed is handed on with the reason; only a text that cannot be divided into rows is an error.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emendo.errors import DatasetError, RequestError
from emendo.requests import PROMPT_LISTS, parse_object, unique_fields

_LINE_END = re.compile(r"\r\n|\r|\n")
"""Not str.splitlines(): that also splits at U+2028 and its like, which JSON strings may hold."""

_BLANK = re.compile(r"[ \t\r\n]*")
_CSV_LISTS = (*PROMPT_LISTS, "probes")


@dataclass(frozen=True)
class Row:
    """A row of a data set.

    Attributes:
        line: Line of the file on which it begins, from 1; the number of the row in a dataset of the hub.
        value: Its fields; None where it could not be parsed.
        problem: Why it could not be parsed.
    """

    line: int
    value: dict[str, Any] | None
    problem: str = ""


def split_rows(text: str, source: str) -> tuple[str, Iterator[Row]]:
    """The container of a text (``"json"``, ``"jsonl"`` or ``"csv"``) and its rows.

    A list of JSON objects begins with ``[``; a CSV file has a first line with a column ``subject``, which every flat
    format needs; everything else is taken for one JSON object a line.

    Args:
        text: The decoded text.
        source: How errors name it.

    Raises:
        DatasetError: The text cannot be divided into rows; a JSON list raises when it is read up to there.
    """
    begin = _skip_blank(text, 0)
    if text[begin : begin + 1] == "[":
        return "json", _list_rows(text, begin, source)
    first = _LINE_END.split(text[begin:], maxsplit=1)[0]
    if not first.startswith("{"):
        header = _header(first)
        if "subject" in header:
            return "csv", _csv_rows(text[begin:], len(_LINE_END.findall(text, 0, begin)), header, source)
        if re.search(r"\bsubject\b", first) and re.search(r"[;\t|]", first):
            raise DatasetError(f"{source}: the columns of its first line are not separated by commas: {first[:120]!r}")
    return "jsonl", _jsonl_rows(text)


def _skip_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _jsonl_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip():
            try:
                yield Row(number, parse_object(line))
            except RequestError as error:
                yield Row(number, None, "; ".join(error.problems))


def _list_rows(text: str, begin: int, source: str) -> Iterator[Row]:
    """The elements one by one, so that each is known by its line and a bad one does not hide the others."""
    line, counted, rows = 1, 0, 0
    at = _skip_blank(text, begin + 1)
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + len(_LINE_END.findall(text, counted, at)), at
        try:
            value, problem, end = _element(text, at)
        except (ValueError, RecursionError) as error:
            raise _broken(source, line, rows, str(error)) from error
        rows += 1
        yield Row(line, value, problem)
        at = _skip_blank(text, end)
        if text[at : at + 1] not in (",", "]"):
            raise _broken(source, line, rows, f"expected a comma or ], found {text[at : at + 20]!r}")
        more = text[at] == ","
        at = _skip_blank(text, at + 1) if more else at
    at = _skip_blank(text, at + 1)
    if at < len(text):
        raise _broken(source, line, rows, f"text after its end: {text[at : at + 60]!r}")


def _element(text: str, at: int) -> tuple[dict[str, Any] | None, str, int]:
    """The object at a place, or what is wrong with it, and where it ends.

    Raises:
        ValueError, RecursionError: No JSON value can be read there, so that its end is not known.
    """
    try:
        value, end = json.JSONDecoder(object_pairs_hook=unique_fields).raw_decode(text, at)
    except RequestError as error:
        return None, "; ".join(error.problems), json.JSONDecoder().raw_decode(text, at)[1]
    if not isinstance(value, dict):
        return None, f"expected a JSON object, found {type(value).__name__}", end
    return value, "", end


def _broken(source: str, line: int, rows: int, reason: str) -> DatasetError:
    return DatasetError(
        f"{source}: its JSON list breaks off at line {line}, after {rows} row(s): {reason}. Repair the file; "
        "in a file with one JSON object a line only the broken row would be lost"
    )


def _header(line: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def _csv_rows(text: str, lines_before: int, header: list[str], source: str) -> Iterator[Row]:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DatasetError(f"{source}: column(s) {', '.join(map(repr, repeated))} are given more than once")
    # newline="" leaves line ends inside quoted cells as they are, and splits at no other character.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    next(reader)
    while True:
        line = lines_before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, None, f"not CSV: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            yield Row(line, None, f"the row has {len(cells)} cells, the header {len(header)}")
            continue
        try:
            yield Row(line, {name: _cell(name, cell) for name, cell in zip(header, cells, strict=True) if cell.strip()})
        except (ValueError, RecursionError) as error:
            yield Row(line, None, str(error))


def _cell(name: str, cell: str) -> Any:
    """A cell's value: columns of lists hold a JSON list, or one prompt as it stands."""
    if name not in _CSV_LISTS:
        return cell
    if name != "probes" and not cell.lstrip().startswith("["):
        return [cell]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"column {name} must hold a JSON list or one prompt: {error}") from error
