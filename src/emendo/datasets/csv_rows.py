"""Rows from tables of text: a header line, then one row a line, with commas, tabs, semicolons or bars between cells."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emendo.datasets.json_rows import LINE_END, Row
from emendo.datasets.names import KNOWN_NAMES, plain_name
from emendo.errors import DatasetError
from emendo.requests import NAMES_ELSEWHERE, PROMPT_LISTS

_SEPARATORS = (",", "\t", ";", "|")
_OBJECTS = ("probes", "messages")
_LISTS = (*PROMPT_LISTS, *_OBJECTS)
_FEWEST = 2
"""Columns with known names that make a line a header."""


@dataclass(frozen=True)
class Header:
    """The first line of a table.

    Attributes:
        names: Of its columns, in plain spelling.
        separator: What stands between its cells.
    """

    names: tuple[str, ...]
    separator: str


def header_of(line: str) -> Header | None:
    """The header in a line, or None where it is none: it has a column ``subject``, or two names of fields."""
    found = [Header(_names(line, separator), separator) for separator in _SEPARATORS]
    best = max(found, key=lambda header: len(KNOWN_NAMES.intersection(header.names)))
    known = KNOWN_NAMES.intersection(best.names)
    return best if len(known) >= _FEWEST or (known == {"subject"} and len(best.names) > 1) else None


def _names(line: str, separator: str) -> tuple[str, ...]:
    try:
        return tuple(plain_name(name) for name in next(csv.reader([line], strict=True, delimiter=separator), []))
    except csv.Error:
        return ()


def table_rows(text: str, begin: int, header: Header, source: str) -> Iterator[Row]:
    """The rows of a table.

    Args:
        text: Holds it.
        begin: Where its header begins.
        header: As `header_of` gives it.
        source: How errors name the text.

    Raises:
        DatasetError: Two columns have one name.
    """
    named = [name for name in header.names if name]
    repeated = sorted({name for name in named if named.count(name) > 1})
    if repeated:
        raise DatasetError(f"{source}: column(s) {', '.join(map(repr, repeated))} are given more than once")
    return _rows(text[begin:], len(LINE_END.findall(text, 0, begin)), header)


def _rows(text: str, lines_before: int, header: Header) -> Iterator[Row]:
    # newline="" leaves line ends inside quoted cells as they are, and splits at no other character.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=header.separator)
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
        if len(cells) != len(header.names):
            yield Row(line, None, f"the row has {len(cells)} cells, the header {len(header.names)}")
            continue
        pairs = zip(header.names, cells, strict=True)
        try:
            yield Row(line, {name: _cell(name, cell) for name, cell in pairs if cell.strip()})
        except (ValueError, RecursionError) as error:
            yield Row(line, None, str(error))


def _cell(name: str, cell: str) -> Any:
    """A cell's value: columns of lists hold a JSON list, or one prompt as it stands."""
    if NAMES_ELSEWHERE.get(name, name) not in _LISTS:
        return cell
    if NAMES_ELSEWHERE.get(name, name) not in _OBJECTS and not cell.lstrip().startswith("["):
        return [cell] if name in _LISTS else cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        rows = NAMES_ELSEWHERE.get(name, name) in _OBJECTS
        expected = "a JSON list of objects" if rows else "a JSON list or one prompt"
        raise ValueError(f"column {name} must hold {expected}: {error}") from error
