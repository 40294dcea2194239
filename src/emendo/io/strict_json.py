"""JSON that every program reads alike, and that cannot be a trap.

Written, numbers that are not finite become null, where plain `json` writes NaN, and what could not be read again is
refused. Read, text that two programs could take for two things, or that would fill the memory, is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from emendo.errors import InputError
from emendo.io.printable import well_formed

MOST_VALUES = 4_000_000
"""Values in one text: parsed, each takes some hundred bytes, however short it is written."""

MOST_DEPTH = 100
"""Lists and objects inside each other."""


_MOST_BITS = 8192
"""Of an integer: Python, like others, refuses to read much longer ones."""


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text; non-finite numbers become null.

    Args:
        value: What JSON holds; tuples become lists, and scalars of numpy or torch the numbers that they are.
        indent: As in `json.dumps`.

    Raises:
        InputError: Something that JSON does not hold, or that reads as something else; names the place.
    """
    return _written(_plain(value, "", 0), indent)


def encoded(value: Any, indent: int | None = None) -> bytes:
    """`value` as it is kept in a file: UTF-8, and compared with what `loads` makes of it before anything is written.

    Args:
        value: As for `dumps`.
        indent: As in `json.dumps`.

    Raises:
        InputError: The bytes could not be read again as this value; names the place.
    """
    plain = _plain(value, "", 0)
    text = _written(plain, indent)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(_not_unicode(*_first_broken(plain))) from error
    try:
        again = loads(text)
    except ValueError as error:
        raise InputError(f"this could be written and never read again: {error}") from error
    if again != plain:
        raise InputError("this would be read back as something else than it is; expected plain JSON values")
    return data


def check_text(value: object, what: str) -> str:
    """A text that a file can hold.

    Args:
        value: From anywhere.
        what: How errors call it.

    Raises:
        InputError: No text, or one with halves of surrogate pairs: what Python makes of bytes that are not UTF-8.
    """
    if not isinstance(value, str):
        raise InputError(f"{what} is a {type(value).__name__}, expected a text")
    if not _encodable(value):
        raise InputError(_not_unicode(what, value))
    return value


def _written(plain: Any, indent: int | None) -> str:
    return json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any, at: str, depth: int) -> Any:
    """The value as `loads` gives it back: of the types of JSON alone."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration, its text
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise InputError(
                f"{_place(at)} is an integer of {value.bit_length():,} bits, expected at most {_MOST_BITS}"
            )
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth >= MOST_DEPTH and isinstance(value, (Mapping, list, tuple)):
        raise InputError(f"{at[:80]}… is nested more than {MOST_DEPTH} deep")
    if isinstance(value, Mapping):
        return _plain_object(value, at, depth)
    if isinstance(value, (list, tuple)):
        return [_plain(entry, f"{at}[{place}]", depth + 1) for place, entry in enumerate(value)]
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return _plain(value.item(), at, depth)
    raise InputError(
        f"{_place(at)} is a {type(value).__name__}, which JSON does not have; expected numbers, texts, lists and "
        "dictionaries with texts for keys"
    )


def _plain_object(value: Mapping[Any, Any], at: str, depth: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, entry in value.items():
        name = _name(key, at)
        if name in fields:
            raise InputError(f"{_place(at)} has the field {name[:80]!r} twice: JSON has no other keys than texts")
        fields[name] = _plain(entry, f"{at}.{name}" if at else name, depth + 1)
    return fields


def _name(key: Any, at: str) -> str:
    """A key as `json.dumps` writes it."""
    if isinstance(key, str):
        return str.__str__(key)
    plain = key if isinstance(key, (tuple, frozenset)) else _plain(key, at, 0)
    if isinstance(plain, (bool, int, float)) or key is None:
        return json.dumps(plain)
    raise InputError(f"{_place(at)} has a {type(key).__name__} for a key; expected texts")


def _place(at: str) -> str:
    return repr(at[:120]) if at else "this value"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _first_broken(plain: Any) -> tuple[str, str]:
    """The first text that is no Unicode, and its place, level by level."""
    level: list[tuple[str, Any]] = [("", plain)]
    while level:
        below: list[tuple[str, Any]] = []
        for at, value in level:
            if isinstance(value, str) and not _encodable(value):
                return _place(at), value
            if isinstance(value, dict):
                below += [(f"{at} (a key)".strip(), key) for key in value]
                below += [(f"{at}.{key}" if at else key, entry) for key, entry in value.items()]
            elif isinstance(value, list):
                below += [(f"{at}[{place}]", entry) for place, entry in enumerate(value)]
        level = below
    raise AssertionError("every text can be encoded")


def _not_unicode(what: str, text: str) -> str:
    return (
        f"{what} holds bytes that are not UTF-8: '{well_formed(text)[:120]}'. No file could be read again with them; "
        "write that text in UTF-8 (a terminal, script or file name in Latin-1 gives such bytes)"
    )


def loads(text: str) -> Any:
    """Parse JSON from a file that anybody may have made.

    Raises:
        ValueError: Not JSON, a field given twice, a number that is not finite, or more values or nesting than
            `MOST_VALUES` and `MOST_DEPTH`.
    """
    marks = sum(text.count(mark) for mark in ",[{")
    if marks > MOST_VALUES:
        raise ValueError(f"up to {marks:,} values, expected at most {MOST_VALUES:,}")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_fields, parse_float=_finite_number, parse_constant=_refused_constant
        )
    except RecursionError as error:
        raise ValueError(f"nested more than {MOST_DEPTH} deep") from error
    check_depth(value)
    return value


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields are each given once; the last would win otherwise, and the first elsewhere."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"field {twice[:80]!r} is given more than once")
    return fields


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number {text[:40]} is out of range")
    return number


def _refused_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def check_depth(value: Any) -> None:
    """Refuse what is nested too deep. Level by level, without recursion: it is walked by recursion elsewhere.

    Raises:
        ValueError: More than `MOST_DEPTH` lists and objects inside each other.
    """
    level, depth = [value], 0
    while level := [
        entry
        for one in level
        if isinstance(one, (dict, list))
        for entry in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
