"""JSON that every program reads alike, and that cannot be a trap.

Written, numbers that are not finite become null, where plain `json` writes NaN. Read, text that two programs could take
for two things, or that would fill the memory, is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

MOST_VALUES = 4_000_000
"""Values in one text: parsed, each takes some hundred bytes, however short it is written."""

MOST_DEPTH = 100
"""Lists and objects inside each other."""


def dumps(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text; non-finite numbers become null.

    Args:
        value: What JSON holds; tuples become lists.
        indent: As in `json.dumps`.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


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
