"""The grids of GGUF's quantised types: which values an entry can take in a file, and where its level is kept.

Every type here stores a level of a few bits for each entry, and for a block of entries a scale and maybe an offset. All
of a block but the levels stays as it is, so what the levels stand for can be asked of the gguf package itself: from the
same bytes with the lowest and with the highest level everywhere.

Source: the layouts of blocks in ggml (ggml-common.h, block_q4_0 and after).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from emendo.errors import ExportError
from emendo.export.gguf_names import gguf_package
from emendo.shapes import Weight
from emendo.solve.grid_rounding import Grid

Bytes: TypeAlias = NDArray[np.uint8]


def _nibbles(levels: Bytes, group: int) -> Bytes:
    """Two levels a byte: of each group of entries the first half in the low bits, the second in the high ones."""
    halves = levels.reshape(*levels.shape[:-1], -1, 2, group // 2)
    packed: Bytes = (halves[..., 0, :] | (halves[..., 1, :] << 4)).astype(np.uint8)
    return packed.reshape(*levels.shape[:-1], -1)


def _plain_nibbles(levels: Bytes) -> Bytes:
    return _nibbles(levels, 32)


def _long_nibbles(levels: Bytes) -> Bytes:
    return _nibbles(levels, 64)


def _signed_bytes(levels: Bytes) -> Bytes:
    return np.bitwise_xor(levels, np.uint8(128))  # the bits of a signed number


def _six_bits(levels: Bytes) -> Bytes:
    """Of 128 entries, four rows of 32: low nibbles in 64 bytes, the two bits above them in 32."""
    rows = levels.reshape(*levels.shape[:-1], 2, 4, 32)
    low, high = rows & 15, rows >> 4
    lower = low[..., :2, :] | (low[..., 2:, :] << 4)
    upper = high[..., 0, :] | (high[..., 1, :] << 2) | (high[..., 2, :] << 4) | (high[..., 3, :] << 6)
    shape = levels.shape[:-1]
    packed: Bytes = np.concatenate([lower.reshape(*shape, 128), upper.reshape(*shape, 64)], axis=-1)
    return packed


@dataclass(frozen=True)
class _Layout:
    """A block of a type.

    Args:
        entries: In a block.
        nbytes: Of a block.
        levels: Where their bytes begin and end.
        count: Of levels.
        pack: From levels of whole blocks to those bytes.
    """

    entries: int
    nbytes: int
    levels: tuple[int, int]
    count: int
    pack: Callable[[Bytes], Bytes]


LAYOUTS = {
    "Q4_0": _Layout(32, 18, (2, 18), 16, _plain_nibbles),
    "Q4_1": _Layout(32, 20, (4, 20), 16, _plain_nibbles),
    "Q8_0": _Layout(32, 34, (2, 34), 256, _signed_bytes),
    "Q4_K": _Layout(256, 144, (16, 144), 16, _long_nibbles),
    "Q6_K": _Layout(256, 210, (0, 192), 64, _six_bits),
}
"""Types whose levels can be changed in place."""


def grid_of(entry: Any) -> Grid:
    """The values that the entries of a tensor in a file can take, ``[d_out, d_in]``.

    Args:
        entry: Of a `GGUFReader`.

    Raises:
        ExportError: Its type has no levels that can be changed in place.
    """
    layout = _layout(entry)
    shape = tuple(int(size) for size in reversed(entry.shape))
    lowest = _values(entry, with_levels(entry, torch.zeros(shape, dtype=torch.uint8)))
    highest = _values(entry, with_levels(entry, torch.full(shape, layout.count - 1, dtype=torch.uint8)))
    levels = torch.arange(layout.count, dtype=torch.float32)
    return Grid((highest - lowest) / (layout.count - 1), lowest, levels)


def with_levels(entry: Any, levels: UInt8[Tensor, "d_out d_in"]) -> UInt8[Tensor, "d_out nbytes"]:
    """The bytes of a tensor with other levels: scales and offsets are those of the file.

    Args:
        entry: Of a `GGUFReader`.
        levels: Index of the level of every entry.

    Raises:
        ExportError: Its type has no levels that can be changed in place.
    """
    layout, rows = _layout(entry), len(levels)
    blocks = np.array(entry.data, copy=True).view(np.uint8).reshape(rows, -1, layout.nbytes)
    begin, end = layout.levels
    blocks[..., begin:end] = layout.pack(levels.numpy().reshape(rows, -1, layout.entries))
    return torch.from_numpy(blocks.reshape(rows, -1))


def _values(entry: Any, stored: Tensor) -> Weight:
    values = gguf_package().quants.dequantize(stored.numpy(), entry.tensor_type)
    return torch.from_numpy(values.copy())


def _layout(entry: Any) -> _Layout:
    name = entry.tensor_type.name
    if name not in LAYOUTS:
        raise ExportError(
            f"{entry.name} is stored as {name}, whose levels Emendo does not write in place; expected one of "
            f"{', '.join(LAYOUTS)}. `emendo export gguf` stores the edited tensors densely, and `emendo export "
            "gguf-lora` leaves the file as it is (--base)"
        )
    return LAYOUTS[name]
