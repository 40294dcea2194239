"""Half of a symmetric matrix, row by row: what second moments are on disk.

Mirroring goes by tiles that fit into a processor's cache: a transposed copy of a whole matrix of 14336 columns reads
each of its cache lines eight times.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_TILE = 256
"""Rows and columns of a tile: half a MiB in float64."""


def pack_triangle(matrix: Float[Tensor, "d d"]) -> Float[Tensor, " packed"]:
    """The lower triangle of a symmetric matrix, row by row, d (d + 1) / 2 numbers."""
    return torch.cat([row[: index + 1] for index, row in enumerate(matrix.cpu())])


def packed_bytes(d: int, accumulate: str) -> int:
    """Bytes of what `pack_triangle` makes of a d × d matrix of that type."""
    return d * (d + 1) // 2 * int(getattr(torch, accumulate).itemsize)


def unpack_triangle(packed: Float[Tensor, " packed"]) -> Float[Tensor, "d d"]:
    """The symmetric matrix whose lower triangle `pack_triangle` took."""
    d = int((2 * packed.numel() + 0.25) ** 0.5)
    matrix = packed.new_empty(d, d)
    for begin in range(0, d, _TILE):
        end = min(begin + _TILE, d)
        rows = matrix[begin:end]
        for index, row in enumerate(rows, start=begin):
            first = index * (index + 1) // 2
            row[: index + 1] = packed[first : first + index + 1]
        for left in range(0, begin, _TILE):  # rows above have the mirror image of what these rows have to their left
            matrix[left : left + _TILE, begin:end] = rows[:, left : left + _TILE].T
        own = rows[:, begin:end].tril()
        rows[:, begin:end] = own + own.tril(-1).T
    return matrix
