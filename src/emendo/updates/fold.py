"""Many low-rank updates of a layer as one of the smallest rank: two QR decompositions and the SVD of a small core.

With the stacked factors ``ΔW = RᵀQ``, ``Rᵀ = U₁T₁`` and ``Qᵀ = U₂T₂``, the singular values of ΔW are those of
``T₁T₂ᵀ``, of order min(n, d_out) × min(n, d_in): ΔW is never formed. Keeping the r largest is the best approximation
of rank r; its error is the root of the sum of the others' squares (Eckart and Young). Both factors take √σ, so that
neither overflows where the other underflows.

Factors of rank r hold r (d_in + d_out) numbers and the matrix d_in · d_out, so that above the break-even rank
d_in d_out / (d_in + d_out) the weights themselves are the smaller form. Folding still never grows an update: it has no
more rows than before and than the smaller side of the matrix, at most (1 + d_small/d_large) times the dense size, and
says which layers are past break-even.

Source: Golub and Van Loan, "Matrix Computations", 4th ed., sections 2.4 and 5.4; as PRUNE's post-step uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Measured, checked
from emendo.errors import InputError, NumericalError
from emendo.shapes import DualKeys, Residuals
from emendo.solve import frobenius_norm
from emendo.updates.merge import merge
from emendo.updates.update import LayerUpdate, ModelUpdate

_FLOAT32_ROOM = 0.9
"""Part of the tolerance that truncation may use: the rest is for rounding the factors to float32."""


@dataclass(frozen=True)
class FoldedLayer:
    """What folding did to one layer.

    Attributes:
        layer: Index of the block.
        rank_before: Rows of the factors before.
        rank: Rows after.
        error: ‖ΔW' − ΔW‖_F / ‖ΔW‖_F, measured on the float32 factors; 0 where nothing was changed.
        bytes_before: Of the factors.
        bytes: Of the factors after.
        keys_bytes: Of the keys after.
        dense_bytes: Of ΔW as a float32 matrix.
        break_even: Largest rank at which factors are no larger than the matrix.
    """

    layer: int
    rank_before: int
    rank: int
    error: float
    bytes_before: int
    bytes: int
    keys_bytes: int
    dense_bytes: int
    break_even: int

    @property
    def past_break_even(self) -> bool:
        """Whether the dense matrix would be smaller than the factors."""
        return self.rank > self.break_even


@dataclass(frozen=True)
class Sizes:
    """Bytes of an update's tensors, keys included, and of its layers as dense float32 matrices."""

    before: int
    after: int
    dense: int


@dataclass(frozen=True)
class Folded:
    """A folded update and what it cost.

    Attributes:
        update: One update of the smallest rank that keeps the tolerance, its figures in ``info["folded"]``.
        layers: What folding did to each layer.
        sizes: Bytes before and after.
    """

    update: ModelUpdate
    layers: tuple[FoldedLayer, ...]
    sizes: Sizes

    @property
    def error(self) -> float:
        """The largest relative Frobenius error of a layer."""
        return max((layer.error for layer in self.layers), default=0.0)

    @property
    def rank(self) -> dict[int, int]:
        """Rank by layer."""
        return {layer.layer: layer.rank for layer in self.layers}


@checked
def break_even_rank(d_out: int, d_in: int) -> int:
    """The largest rank at which factors are no larger than the matrix: ⌊d_in d_out / (d_in + d_out)⌋."""
    return d_out * d_in // (d_out + d_in)


@checked
@torch.no_grad()
def fold(
    updates: ModelUpdate | Sequence[ModelUpdate],
    *,
    tolerance: Measured | None = 1e-6,
    max_rank: int | None = None,
    keep_keys: bool = True,
) -> Folded:
    """One update of the smallest rank in place of many.

    Weights that it is applied to equal those of the parts within the tolerance, never bit for bit: for that, keep the
    parts. A layer whose rank cannot be lowered keeps its factors as they are.

    Args:
        updates: What to fold: one update, or several that `merge` can add.
        tolerance: Largest relative Frobenius error of a layer's ΔW; None for the rank alone to decide, where only
            what is zero beside float64 rounding is dropped.
        max_rank: Most rows of a layer; None for as many as the tolerance takes.
        keep_keys: Keep the keys that were written, stacked. Dropping them makes the file smaller; then methods that
            preserve earlier edits (``history.weight`` above 0) refuse to plan on top of it, and no later edit of such
            a method can be worked out anew by `emendo.updates.without`.

    Returns:
        The folded update with its measured error, ranks and sizes.

    Raises:
        InputError: The tolerance cannot be kept at that rank or in float32; or an argument is out of range.
        BaseMismatchError: As `merge`.
        ConflictError: As `merge`.
        NumericalError: Factors are not finite.
    """
    if tolerance is not None and not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise InputError(f"the tolerance is {tolerance}; expected at least 0 and below 1 (--tolerance 1e-6)")
    if max_rank is not None and max_rank < 0:
        raise InputError(f"the largest rank is {max_rank}; expected at least 0 (--max-rank 64)")
    total = updates if isinstance(updates, ModelUpdate) else merge(updates)
    pairs = [_folded(layer, tolerance, max_rank, keep_keys) for layer in total.layers]
    layers, reports = tuple(layer for layer, _ in pairs), tuple(report for _, report in pairs)
    record: dict[str, Any] = {
        "from": total.id,
        "tolerance": tolerance,
        "max_rank": max_rank,
        "keys": "kept" if keep_keys else "dropped",
        "layers": [asdict(report) for report in reports],
    }
    update = replace(total, layers=layers, info={**total.info, "folded": record})
    dense = sum(report.dense_bytes for report in reports)
    return Folded(update, reports, Sizes(total.nbytes, update.nbytes, dense))


def _folded(
    part: LayerUpdate, tolerance: float | None, max_rank: int | None, keep_keys: bool
) -> tuple[LayerUpdate, FoldedLayer]:
    """One layer, and what was done to it."""
    d_out, d_in = part.residuals.shape[1], part.dual_keys.shape[1]
    residuals, dual_keys, error = _truncated(part, tolerance, max_rank)
    keys = part.keys if keep_keys else None
    folded = LayerUpdate(part.layer, part.module, residuals, dual_keys, keys)
    return folded, FoldedLayer(
        layer=part.layer,
        rank_before=part.rank,
        rank=folded.rank,
        error=error,
        bytes_before=part.residuals.nbytes + part.dual_keys.nbytes,
        bytes=residuals.nbytes + dual_keys.nbytes,
        keys_bytes=0 if keys is None else keys.nbytes,
        dense_bytes=4 * d_out * d_in,
        break_even=break_even_rank(d_out, d_in),
    )


def _truncated(part: LayerUpdate, tolerance: float | None, max_rank: int | None) -> tuple[Residuals, DualKeys, float]:
    """Float32 factors of the smallest rank within the tolerance, and their relative error."""
    residuals, dual_keys = part.residuals.double().cpu(), part.dual_keys.double().cpu()
    if not (residuals.isfinite().all() and dual_keys.isfinite().all()):
        raise NumericalError(f"the update of layer {part.layer} is not finite; expected finite factors, plan it again")
    left, right = torch.linalg.qr(residuals.T), torch.linalg.qr(dual_keys.T)
    U, S, Vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    # Rows that cancel leave noise of their factors' size, however small their sum is.
    noise = len(S) * torch.finfo(torch.float64).eps * float(left.R.norm()) * float(right.R.norm())
    if float(S.norm()) <= noise:
        return part.residuals[:0], part.dual_keys[:0], 0.0
    rank = _rank(S, tolerance, noise)
    rank = rank if max_rank is None else min(rank, max_rank)
    if rank >= part.rank:
        return part.residuals, part.dual_keys, 0.0
    root = S[:rank].sqrt()
    new = ((left.Q @ (U[:, :rank] * root)).T.float(), ((right.Q @ Vh[:rank].T) * root).T.float())
    error = _distance(new, (residuals, dual_keys), float(S.norm()))
    if tolerance is not None and error > tolerance:
        if rank == max_rank:
            raise InputError(
                f"layer {part.layer} at rank {rank} is {error:.1e} (relatively) from the whole; expected {tolerance:g} "
                "at most. Allow a higher rank (--max-rank), or a larger error (--tolerance)"
            )
        raise InputError(
            f"layer {part.layer} in float32 factors is {error:.1e} (relatively) from the whole, which --tolerance "
            f"{tolerance:g} does not allow; expected 2e-7 or more"
        )
    return (*new, error)


def _rank(singular: Float[Tensor, " k"], tolerance: float | None, noise: float) -> int:
    """How many singular values to keep: the tail's norm is within the tolerance, or zero beside rounding."""
    norm = float(singular.norm())
    # tails[r] is the norm of all but the r largest, summed from the smallest so that nothing small is lost.
    squares = torch.cat([singular.square().flip(0).cumsum(0).flip(0), singular.new_zeros(1)])
    allowed = noise if tolerance is None else max(noise, _FLOAT32_ROOM * tolerance * norm)
    return int((squares.sqrt() > allowed).sum())


def _distance(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor], norm: float) -> float:
    """Relative Frobenius distance of two updates, from their factors."""
    if norm == 0.0:
        return 0.0
    residuals, dual_keys = torch.cat([new[0].double(), -old[0]]), torch.cat([new[1].double(), old[1]])
    return frobenius_norm(residuals, dual_keys) / norm
