"""Wide factors in a file without the columns that hold nothing.

An edit of a mixture of experts has dual keys and keys as wide as all experts together (`models.experts`), and zeros for
those that it does not reach: one edit reaches a few of a hundred. The file has the other columns and where they belong.
A factor of which more than half of the columns hold something is stored as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

PLACES = {"dual_keys": "dual_columns", "keys": "key_columns"}
"""Factors that may be stored without columns, and what says which columns are there."""

_MOST_COLUMNS = 2**24
_MOST_BYTES = 2**37

A = TypeVar("A")


def narrowed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a layer as they are stored, and the width of those that lost columns; None where none did."""
    import torch

    stored, width = dict(tensors), None
    for name, place in PLACES.items():
        if (whole := stored.get(name)) is None or not whole.numel():
            continue
        # Bits, not values: −0 is part of an update's identity.
        bits = whole.detach().contiguous().view(torch.uint8).view(len(whole), whole.shape[1], -1)
        held = (bits != 0).any(dim=2).any(dim=0).nonzero()[:, 0]
        if 2 * len(held) <= whole.shape[1]:
            stored[name], stored[place] = whole[:, held.to(whole.device)], held.to(torch.int32)
            width = int(whole.shape[1])
    return stored, width


def widened(tensors: Mapping[str, A], layer: str, widths: Mapping[str, Any]) -> dict[str, A]:
    """The tensors or arrays of a layer by their names, with all columns.

    Args:
        tensors: Of the whole file.
        layer: The layer, as the file spells it.
        widths: Of the layers that lost columns, from the header.

    Raises:
        ValueError: What says where columns belong makes no sense.
    """
    prefix = f"layer.{layer}."
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, place in PLACES.items():
        if (columns := found.pop(place, None)) is not None:
            found[name] = _widened(found[name], columns, widths.get(layer))
    return found


def checked_widths(header: Mapping[str, Any]) -> dict[str, int]:
    """The widths in a header; none in a file of an older version.

    Raises:
        ValueError: They are no widths.
    """
    widths = header.get("widths", {})
    if not isinstance(widths, dict) or not all(
        isinstance(width, int) and not isinstance(width, bool) and 0 < width <= _MOST_COLUMNS
        for width in widths.values()
    ):
        raise ValueError(f"widths must be an object of numbers up to {_MOST_COLUMNS}")
    return widths


def _widened(part: Any, columns: Any, width: int | None) -> Any:
    places = np.asarray(columns)
    ascending = places.ndim == 1 and places.dtype == np.int32 and bool((np.diff(places) > 0).all())
    inside = width is not None and (not len(places) or (places[0] >= 0 and places[-1] < width))
    if not ascending or not inside or part.ndim != 2 or part.shape[1] != len(places):
        raise ValueError(
            f"columns {list(places.shape)} of {width} do not belong to a factor of shape {list(part.shape)}"
        )
    assert width is not None
    if len(part) * width * part.dtype.itemsize > _MOST_BYTES:
        raise ValueError(f"a factor of {len(part)} rows and {width} columns is larger than {_MOST_BYTES:,} bytes")
    if isinstance(part, np.ndarray):
        whole: Any = np.zeros((len(part), width), dtype=part.dtype)
        whole[:, places] = part
    else:
        whole = part.new_zeros(len(part), width)
        whole[:, columns.long()] = part
    return whole
