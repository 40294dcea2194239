"""Rounding a matrix onto a given grid, so that the errors fall where keys do not look.

An edited weight of a quantised model has to be written in the few levels that its file has. Nearest rounding loses most
of a small edit. Here columns are rounded one after the other, and what rounding one leaves over is put into those that
are still free, by least squares under a metric H of the keys: errors then go where neither preserved nor edited keys
feel them. The grid itself (scales and offsets) stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.errors import InputError, NumericalError
from emendo.shapes import Keys, Moment, Weight

KEY_WEIGHT = 100.0
"""Weight of the edit's own keys in the metric, as a multiple of all preserved keys together."""

DAMPING = 1e-2
"""Multiple of the metric's mean diagonal that is added to its diagonal."""

_BLOCK = 128
"""Columns whose errors are handed on to the columns after them in one product."""


@dataclass(frozen=True)
class Grid:
    """The values that each entry of a matrix can take: ``scale · level + offset``.

    Args:
        scale: Of each entry ``[d_out, d_in]``; where it is zero, every level is the same value.
        offset: Of each entry ``[d_out, d_in]``.
        levels: In ascending order.
    """

    scale: Float[Tensor, "d_out d_in"]
    offset: Float[Tensor, "d_out d_in"]
    levels: Float[Tensor, " n_levels"]

    def nearest(self, values: Float[Tensor, "d_out columns"], columns: slice) -> Int[Tensor, "d_out columns"]:
        """Indices of the levels nearest to the values of some columns."""
        scale = self.scale[:, columns]
        free = scale != 0
        wanted = (values - self.offset[:, columns]) / torch.where(free, scale, torch.ones_like(scale))
        between = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(torch.where(free, wanted, torch.zeros_like(wanted)).contiguous(), between)

    def values(self, index: Int[Tensor, "d_out columns"], columns: slice) -> Float[Tensor, "d_out columns"]:
        """What the levels of some columns stand for."""
        return self.scale[:, columns] * self.levels[index] + self.offset[:, columns]


def rounding_metric(moment: Moment, keys: Keys, *, weight: float = KEY_WEIGHT) -> Moment:
    """C with the keys of the edit in it, ``C + w tr(C) / tr(KᵀK) · KᵀK`` in float64.

    Args:
        moment: C of preserved keys.
        keys: K of the edit.
        weight: w.

    Raises:
        InputError: The keys are of another width.
    """
    if keys.shape[1] != len(moment):
        raise InputError(f"keys of width {keys.shape[1]} and a second moment of width {len(moment)}; expected the same")
    total, own = moment.double(), keys.double().to(moment.device)
    size = own.square().sum()
    if not size > 0:
        return total
    return total + own.T @ own * (weight * total.diagonal().sum() / size)


def round_nearest(target: Weight, grid: Grid) -> Int[Tensor, "d_out d_in"]:
    """Indices of the levels nearest to a matrix."""
    return grid.nearest(target, slice(None))


def round_with_feedback(
    target: Weight, grid: Grid, metric: Moment, *, damping: float = DAMPING
) -> Int[Tensor, "d_out d_in"]:
    """Indices of levels whose matrix Q has a small tr((Q − W) H (Q − W)ᵀ): rounding with error feedback.

    Columns are rounded in order. The error of one, e, changes those that are still free by ``−e [F⁻¹]_j / [F⁻¹]_jj``,
    F being H of column j and the free ones: the least-squares answer to it.

    Args:
        target: W ``[d_out, d_in]``.
        grid: What it may become.
        metric: H ``[d_in, d_in]``.
        damping: Multiple of the mean diagonal of H that is added to its diagonal.

    Raises:
        InputError: The metric is of another width.
        NumericalError: It is not positive definite.

    Source: GPTQ (arXiv 2210.17323), eq. 2 and 3 and section 3 (Cholesky of the inverse), with H = C + KᵀK here.
    """
    width = target.shape[1]
    if metric.shape != (width, width):
        raise InputError(
            f"a metric of shape {tuple(metric.shape)} for a matrix of width {width}; expected [d_in, d_in]"
        )
    upper = _inverse_factor(metric, damping).to(target)
    left = target.clone()
    found = torch.empty(target.shape, dtype=torch.long, device=target.device)
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        errors = left.new_empty(len(left), end - begin)
        for j in range(begin, end):
            column = slice(j, j + 1)
            index = grid.nearest(left[:, column], column)
            found[:, column] = index
            error = (left[:, j] - grid.values(index, column)[:, 0]) / upper[j, j]
            left[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - begin] = error
        left[:, end:] -= errors @ upper[begin:end, end:]
    return found


def _inverse_factor(metric: Moment, damping: float) -> Moment:
    """Upper triangular U with Uᵀ U = (H + damping · mean diagonal · I)⁻¹, in float64."""
    full = metric.double()
    full = full + damping * full.diagonal().mean() * torch.eye(len(full), dtype=full.dtype, device=full.device)
    lower, failed = torch.linalg.cholesky_ex(full)
    if int(failed):
        raise NumericalError(
            "the metric for rounding is not positive definite; expected more tokens for the second moment "
            "(--set moments.multiple=10) or a larger damping"
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper
