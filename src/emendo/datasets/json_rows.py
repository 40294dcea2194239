"""Rows from JSON in the forms that people write: a list, one object a line, objects one after another.

A comma too many and comments are understood, because they cannot mean anything else. Text that is JSON already is
never touched.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emendo.arguments.words import shown
from emendo.errors import DatasetError
from emendo.io import strict_json

MOST_ROW = 2**20
"""Characters of one row. Parsed, a short text of brackets takes thirty times its length in memory."""

_WINDOWS = (2**11, 2**14, 2**17, MOST_ROW)
"""Characters that a value is looked for in, so that nothing larger than a row is ever parsed."""

LINE_END = re.compile(r"\r\n|\r|\n")
"""Not str.splitlines(): that also splits at U+2028 and its like, which JSON strings may hold."""

_PRINTED = re.compile(r"\{\s*'")
_COMMENT = r"//[^\r\n]*+|#[^\r\n]*+|/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/)?"
_STRING = r'"(?:[^"\\\r\n]|\\.)*+"?'
_BLANK = re.compile(rf"(?:[ \t\r\n]++|{_COMMENT})*+")
_COMMENTS = re.compile(rf"({_STRING})|{_COMMENT}")
_COMMAS = re.compile(rf"({_STRING})|,(?=[ \t\r\n]*+[}}\]])")


@dataclass(frozen=True)
class Row:
    """A row of a data set.

    Attributes:
        line: Line of the file on which it begins, from 1; the number of the row where a file has no lines of rows.
        value: Its fields; None where it could not be parsed.
        reason: Why it could not be parsed.
    """

    line: int
    value: dict[str, Any] | None
    reason: str = ""


class NoJsonError(ValueError):
    """No JSON value can be read at a place.

    Attributes:
        at: Where in the text the reading stopped.
    """

    def __init__(self, reason: str, at: int) -> None:
        self.at = at
        super().__init__(reason)


def skip_blank(text: str, at: int = 0) -> int:
    """The place after white space and comments."""
    found = _BLANK.match(text, at)
    return found.end() if found else at


def value_at(text: str, at: int, most: int = MOST_ROW) -> tuple[Any, list[str], int]:
    """The JSON value at a place, the names that an object of it gives more than once, and where it ends.

    Args:
        text: Holds it.
        at: Where it begins.
        most: Characters that it may have.

    Raises:
        NoJsonError: There is none, or it is longer.
    """
    refused = NoJsonError("nothing is there", at)
    for size in (*(window for window in _WINDOWS if window < most), most):
        window = text[at : at + size]
        cut = at + size < len(text)
        for candidate in _readings(window):
            try:
                value, repeated, end = _decoded(candidate)
            except NoJsonError as error:
                refused = NoJsonError(str(error), at + error.at)
            else:
                if end < len(window) or not cut:  # a number at the end of a window may go on
                    return value, repeated, at + end
        if not cut:
            raise refused
    raise NoJsonError(f"a row of more than {most:,} characters, or {refused}", refused.at)


def _readings(text: str) -> Iterator[str]:
    """The text, then without comments and commas before a closing bracket; all other characters stay in their place."""
    yield text
    plain = _COMMENTS.sub(lambda found: found[1] or " " * len(found[0]), text)
    plain = _COMMAS.sub(lambda found: found[1] or " ", plain)
    if plain != text:
        yield plain


def _decoded(text: str) -> tuple[Any, list[str], int]:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):  # the last would win, without a word
            repeated.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return row

    try:
        value, end = json.JSONDecoder(object_pairs_hook=unique).raw_decode(text)
    except json.JSONDecodeError as error:
        raise NoJsonError(error.msg, error.pos) from error
    except RecursionError as error:
        raise NoJsonError("nested too deep", 0) from error
    except ValueError as error:  # an integer of thousands of digits
        raise NoJsonError(str(error), 0) from error
    return value, repeated, end


def _row(line: int, value: Any, repeated: list[str]) -> Row:
    if repeated:
        return Row(line, None, "; ".join(f"field {shown(name)} is given more than once" for name in repeated))
    if not isinstance(value, dict):
        return Row(line, None, f"expected a JSON object, found {type(value).__name__}")
    return Row(line, value)


def line_row(number: int, line: str) -> Row:
    """A line that should be one JSON object; a comma after it is no harm."""
    text = line.strip(" \t")
    if len(text) > MOST_ROW:
        return Row(number, None, f"has {len(text):,} characters, expected at most {MOST_ROW:,} a request")
    try:
        value, repeated, end = value_at(text, 0)
    except NoJsonError as error:
        return Row(number, None, f"not JSON: {error} at column {error.at + 1}{_python(text, 0)}")
    rest = skip_blank(text, end)
    if text[rest : rest + 1] == ",":
        rest = skip_blank(text, rest + 1)
    if rest < len(text):
        return Row(number, None, f"not JSON: Extra data at column {rest + 1}")
    return _row(number, value, repeated)


def _python(text: str, at: int) -> str:
    """What to say of an object as Python prints it."""
    return "; this is how Python prints it: write it with json.dumps" if _PRINTED.match(text, at) else ""


def line_rows(text: str) -> Iterator[Row]:
    """One object a line; blank lines and lines of a comment are skipped."""
    for number, line in enumerate(LINE_END.split(text), start=1):
        if line.strip() and not line.lstrip().startswith(("#", "//")):
            yield line_row(number, line)


def list_rows(text: str, begin: int, source: str) -> Iterator[Row]:
    """The elements of a list one by one, so that each is known by its line and a bad one does not hide the others.

    Args:
        text: Holds the list.
        begin: Where its bracket is.
        source: How errors name the text.

    Raises:
        DatasetError: The list breaks off.
    """
    lines, rows = _Lines(text), 0
    at = skip_blank(text, begin + 1)
    while text[at : at + 1] != "]":
        try:
            value, repeated, end = value_at(text, at)
        except NoJsonError as error:
            raise _broken(source, lines.of(error.at), rows, f"{error}{_python(text, at)}") from error
        rows += 1
        yield _row(lines.of(at), value, repeated)
        at = skip_blank(text, end)
        if text[at : at + 1] not in (",", "]"):
            raise _broken(source, lines.of(at), rows, f"expected a comma or ], found {text[at : at + 20]!r}")
        at = skip_blank(text, at + 1) if text[at] == "," else at
    at = skip_blank(text, at + 1)
    if at < len(text):
        raise _broken(source, lines.of(at), rows, f"text after its end: {text[at : at + 60]!r}")


def object_rows(text: str, begin: int, source: str) -> Iterator[Row]:
    """Objects that follow each other over any number of lines, with or without commas between them.

    The first may be longer than a row, because all rows may lie in it.

    Raises:
        DatasetError: An object breaks off, so that it is not known where the next one begins.
    """
    lines, rows, at = _Lines(text), 0, begin
    most = max(MOST_ROW, len(text) if _few_values(text) else 0)
    while at < len(text):
        try:
            value, repeated, end = value_at(text, at, MOST_ROW if rows else most)
        except NoJsonError as error:
            raise _broken(source, lines.of(error.at), rows, str(error), "JSON") from error
        rows += 1
        yield _row(lines.of(at), value, repeated)
        at = skip_blank(text, end)
        at = skip_blank(text, at + 1) if text[at : at + 1] == "," else at


def are_lines(text: str, begin: int) -> bool:
    """Whether a text that begins with an object has one a line, rather than objects over several lines.

    It has where the first line or the one after it is an object. Otherwise the first object goes on below, or is
    damaged, and then the lines say more.
    """
    first = LINE_END.split(text[begin : begin + MOST_ROW], maxsplit=2)
    if any(line_row(1, line).value is not None for line in first[:2] if line.lstrip().startswith("{")):
        return True
    try:
        value_at(text, begin, len(text) if _few_values(text) else MOST_ROW)
    except NoJsonError as error:
        return error.at <= begin + len(first[0])
    return False


def _few_values(text: str) -> bool:
    return sum(map(text.count, ",[{")) <= strict_json.MOST_VALUES


class _Lines:
    """Line numbers of places that only grow."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._line = text, 0, 1

    def of(self, at: int) -> int:
        """The line of a place, from 1."""
        self._line += len(LINE_END.findall(self._text, self._at, at))
        self._at = at
        return self._line


def _broken(source: str, line: int, rows: int, reason: str, what: str = "JSON list") -> DatasetError:
    return DatasetError(
        f"{source}: its {what} breaks off at line {line}, after {rows} row(s): {reason}. Repair the file; in a "
        "file with one JSON object a line only the broken row would be lost"
    )
