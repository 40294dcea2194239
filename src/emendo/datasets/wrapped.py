"""Rows inside one object: below a key, by column, by number, or as `pandas` writes a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emendo.datasets.names import KNOWN_NAMES, plain_name
from emendo.errors import DatasetError

_FEWEST = 2
"""Known names of fields that make an object one of columns, or a value one of rows."""


def unwrap(content: Mapping[str, Any], source: str) -> tuple[str, list[Any]] | None:
    """How the rows lie in an object that is no row itself, and the rows; None where it holds none.

    Args:
        content: The object.
        source: How errors name it.

    Raises:
        DatasetError: It holds rows in a way that leaves open which, or which of them belong together.
    """
    columns = {name: value for name, value in content.items() if plain_name(str(name)) in KNOWN_NAMES}
    if len(columns) >= _FEWEST and all(isinstance(value, (list, Mapping)) for value in columns.values()):
        return "by column", _from_columns(columns, source)
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        return "by column", _from_cells(content["columns"], content["data"], source)
    below = [name for name, value in content.items() if _are_rows(value)]
    if len(below) > 1:
        raise DatasetError(
            f"{source}: holds rows below {', '.join(map(repr, below[:5]))}; expected one list of them. Write those of "
            "one key to a file of their own"
        )
    if below:
        return f"below {below[0]!r}", list(content[below[0]])
    if content and all(_is_row(value) for value in content.values()):
        return "by key", list(content.values())
    return None


def _is_row(value: object) -> bool:
    return (
        isinstance(value, Mapping) and len(KNOWN_NAMES.intersection(plain_name(str(name)) for name in value)) >= _FEWEST
    )


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value)


def _from_columns(columns: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """Rows from columns, which are lists, or objects from the number of a row to its cell."""
    lists = {
        name: list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
        for name, value in columns.items()
    }
    places = {tuple(place for place, _ in column) for column in lists.values()}
    if len(places) > 1:
        lengths = ", ".join(f"{name}: {len(column)}" for name, column in lists.items())
        raise DatasetError(f"{source}: its columns do not have the same rows ({lengths})")
    return [{name: column[row][1] for name, column in lists.items()} for row in range(len(next(iter(places), ())))]


def _from_cells(names: list[Any], rows: list[Any], source: str) -> list[dict[str, Any]]:
    """Rows from lists of cells and the names of the columns."""
    for number, cells in enumerate(rows, start=1):
        if not isinstance(cells, list) or len(cells) != len(names):
            raise DatasetError(f"{source}: row {number} of its data is no list of {len(names)} cells, one a column")
    return [dict(zip(map(str, names), cells, strict=True)) for cells in rows]
