"""What an update file holds, checked the same way whether torch or numpy reads it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from emendo.errors import InputError, UpdateFileError
from emendo.io.tensor_file import TensorFileFormat
from emendo.updates.columns import PLACES
from emendo.updates.predecessors import Predecessors

FORMAT = TensorFileFormat(
    name="emendo.update",
    version=4,
    error=UpdateFileError,
    remedy="make it again with `emendo edit --out FOLDER`",
)


def version_of(header: Mapping[str, Any]) -> int:
    """The version of a file with this header: the lowest that has all of it, so that older programs read what they can.

    2: keys that were written, where they are known; 3: factors without the columns that hold nothing; 4: predecessors
    by number, digest and last, where there are any, instead of all of them.
    """
    if isinstance(header["preceding"], dict):
        return 4
    return 3 if "widths" in header else 2


PARTS = ("residuals", "dual_keys", "keys")
"""Tensors of a layer; keys may be absent."""


class Matrix(Protocol):
    """What a tensor and an array have in common."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""

    @property
    def shape(self) -> Any:
        """Sizes."""

    def __len__(self) -> int: ...


def checked_header(
    header: Mapping[str, Any],
) -> tuple[dict[str, str], dict[str, str], Predecessors, dict[str, Any]]:
    """Modules by layer, base, predecessors and info of a file whose digest is right, which anybody can compute.

    Raises:
        KeyError, ValueError: The header is not that of an update.
    """
    modules, base, preceding, info = (header[name] for name in ("modules", "base", "preceding", "info"))
    for name, value in (("modules", modules), ("base", base)):
        if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
            raise ValueError(f"{name} must be an object of strings")
    if not isinstance(info, dict):
        raise ValueError("info must be an object")
    for layer in modules:
        # int() also reads "+1", "1_0", " 1" and digits of other scripts, and then two names are one layer.
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", layer):
            raise ValueError(f"{layer[:20]!r} is no layer")
    return modules, base, Predecessors.from_header(preceding), info


def check_names(names: Collection[str], layers: Collection[str]) -> None:
    """Refuse tensors that belong to no layer.

    Raises:
        ValueError: There is one.
    """
    known = {f"layer.{layer}.{part}" for layer in layers for part in (*PARTS, *PLACES.values())}
    if strangers := sorted(set(names) - known):
        raise ValueError(f"{len(strangers)} tensors belong to no layer, {strangers[0][:80]!r} for one")


def check_shapes(layer: int, residuals: Matrix, dual_keys: Matrix, keys: Matrix | None) -> None:
    """Refuse factors and keys that do not fit each other.

    Raises:
        InputError: They do not.
    """
    if residuals.ndim != 2 or dual_keys.ndim != 2 or len(residuals) != len(dual_keys):
        raise InputError(
            f"layer {layer}: factors of shapes {tuple(residuals.shape)} and {tuple(dual_keys.shape)}"
            " do not belong together; expected [n, d_out] and [n, d_in]"
        )
    if keys is not None and (keys.ndim != 2 or keys.shape[1] != dual_keys.shape[1]):
        raise InputError(
            f"layer {layer}: keys of shape {tuple(keys.shape)} do not belong to dual keys of shape "
            f"{tuple(dual_keys.shape)}; expected [edits, {dual_keys.shape[1]}]"
        )


def recorded_requests(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The facts that an update writes, as its record has them; none where it has none."""
    rows = info.get("requests")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def recorded_groups(info: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """The facts of each edit: one, or several that share one key and one value."""
    requests, groups = recorded_requests(info), info.get("groups")
    if not isinstance(groups, list):
        return [[request] for request in requests]
    try:
        return [[requests[index] for index in group] for group in groups]
    except (TypeError, IndexError):  # of a file from elsewhere
        return []
