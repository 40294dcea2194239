"""Names of fields as files spell them, and what each is called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emendo.arguments.words import shown
from emendo.errors import RequestError
from emendo.requests import FIELDS, NAMES_ELSEWHERE

PAIRED = {"locality_prompt": "locality_ground_truth", "loc": "loc_ans"}
"""Questions of other formats that mean something only with the answer beside them."""

_UNSURE = (*PAIRED, "locality_prompts")
"""Names that messages suggest another for, and that nobody may take for it: their answer need not be `target_true`."""

_OTHERS = ("requested_rewrite", "answers", "attribute", "alt", *PAIRED, *PAIRED.values())

KNOWN_NAMES = frozenset((*FIELDS, *NAMES_ELSEWHERE, *_OTHERS))
"""Every name of a field that any format has at the top of its rows, in plain spelling."""

_INDEX_COLUMNS = ("", "unnamed:_0")
"""The column of row numbers that table programs write along."""


def plain_name(name: str) -> str:
    """A name without capitals, outer spaces and byte order mark, with underscores inside, such as ``target_new``."""
    return "_".join(name.strip("\ufeff \t\r\n").casefold().replace("-", " ").split())


def plain_names(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row with its fields in plain spelling, without a column of row numbers.

    Raises:
        RequestError: Two fields differ in spelling alone.
    """
    plain: dict[str, Any] = {}
    for name, value in row.items():
        new = plain_name(name) if isinstance(name, str) else name
        if new in _INDEX_COLUMNS:
            continue
        if new in plain:
            raise RequestError("this row repeats fields:", [f"field {shown(new)} is given more than once"])
        plain[new] = value
    return plain


def own_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in plain spelling with the fields of other tools under the names that they have here.

    Unknown fields stay, so that whoever reads the row can refuse them.

    Raises:
        RequestError: Two fields mean one, such as ``target`` and ``object``.
    """
    named: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    for name, value in row.items():
        if value is None:
            continue
        own = name if name in FIELDS or name in _UNSURE else NAMES_ELSEWHERE.get(name, name)
        if own in named and named[own] != value:
            problems.append(f"{origin[own]!r} and {name!r} both mean {own!r} here; keep one")
        named[own], origin[own] = value, name
    if problems:
        raise RequestError("two fields of this row mean one:", problems)
    return named
