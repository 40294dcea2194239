"""The share of a residual that each layer takes when the total preservation cost is to be smallest (``optimal``).

`distribution.py` says what is minimised and where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import InfeasibleError
from emendo.shapes import Keys
from emendo.solve.feasibility import REMEDY
from emendo.solve.metric import PreparedLayer

Residuals: TypeAlias = Float[Tensor, "n d_model"]


def remaining_splits(
    prepared: Sequence[PreparedLayer], keys: Sequence[Keys], s: float
) -> list[Callable[[Residuals], Residuals]]:
    """For each layer, the function from what is missing before it to what it contributes.

    The matrices of `remaining_shares` are n × n, one a layer. Where least squares has more requests than all layers
    together have directions, the same is computed through matrices of order Σ r.

    Args:
        prepared: The layers' metrics, in the order of writing.
        keys: The layers' keys, read before any of them is written.
        s: Memorization strength, 0 for equality.

    Raises:
        InfeasibleError: The keys are dependent at all layers together.
    """
    if s > 0 and len(keys[0]) > sum(layer.dimensions for layer in prepared):
        return low_rank_splits(prepared, keys, s)
    return [partial(_dense_part, share) for share in remaining_shares(prepared, keys, s)]


def _dense_part(share: Float[Tensor, "n n"], missing: Residuals) -> Residuals:
    return share.to(missing) @ missing


@torch.no_grad()
def remaining_shares(prepared: Sequence[PreparedLayer], keys: Sequence[Keys], s: float) -> list[Float[Tensor, "n n"]]:
    """For each layer, the matrix from what is missing before it to what it contributes: Dₗ (Σ_{m ≥ l} Dₘ)⁻¹.

    Args:
        prepared: The layers' metrics, in the order of writing.
        keys: The layers' keys, read before any of them is written.
        s: Memorization strength, 0 for equality.

    Returns:
        One float64 matrix a layer, ``contribution = matrix @ missing``; the last is the identity.

    Raises:
        InfeasibleError: The keys are dependent at all layers together.
    """
    own = []
    for layer, layer_keys in zip(prepared, keys, strict=True):
        whitened = layer.whiten(layer_keys)
        gram = whitened @ whitened.T
        gram.diagonal().add_(s)
        own.append(gram.cpu())
    return system_shares(own)


@torch.no_grad()
def low_rank_splits(
    prepared: Sequence[PreparedLayer], keys: Sequence[Keys], s: float
) -> list[Callable[[Residuals], Residuals]]:
    """`remaining_splits` without a matrix of order n, for s > 0.

    With Dₗ = Zₗ Zₗᵀ + s I and W = [Zₗ … Z_L],

        (Σ_{m ≥ l} Dₘ)⁻¹ = (I − W (c I + WᵀW)⁻¹ Wᵀ) / c        c = s · (L − l + 1)

    Source: the matrix inversion lemma of Woodbury.
    """
    whitened = [layer.whiten(layer_keys).cpu() for layer, layer_keys in zip(prepared, keys, strict=True)]
    bounds = list(accumulate((part.shape[1] for part in whitened), initial=0))
    gram = whitened[0].new_empty(bounds[-1], bounds[-1])
    for row, left in enumerate(whitened):
        for column, right in enumerate(whitened):
            gram[bounds[row] : bounds[row + 1], bounds[column] : bounds[column + 1]] = left.T @ right
    return [partial(_low_rank_part, prepared, keys, gram, bounds, s, layer) for layer in range(len(prepared))]


@torch.no_grad()
def _low_rank_part(
    prepared: Sequence[PreparedLayer],
    keys: Sequence[Keys],
    gram: Float[Tensor, "w w"],
    bounds: Sequence[int],
    s: float,
    layer: int,
    missing: Residuals,
) -> Residuals:
    """What one layer contributes; the last one takes all that is missing.

    Whitened keys are made again each time: that costs less than to hold those of all layers.
    """
    upper = range(layer, len(prepared))
    if len(upper) == 1:
        return missing

    def whitened(place: int) -> Float[Tensor, "n r"]:
        return prepared[place].whiten(keys[place]).cpu()

    shift, start = s * len(upper), bounds[layer]
    system = gram[start:, start:].clone()
    system.diagonal().add_(shift)
    factor, info = torch.linalg.cholesky_ex(system)
    del system
    if info.item():
        raise _dependent()
    wanted = missing.cpu().double()
    inner = torch.cholesky_solve(torch.cat([whitened(place).T @ wanted for place in upper]), factor)
    del factor
    solved = wanted.clone()
    for place in upper:
        solved.addmm_(whitened(place), inner[bounds[place] - start : bounds[place + 1] - start], alpha=-1)
    solved /= shift
    own = whitened(layer)
    return (own @ (own.T @ solved)).add_(solved, alpha=s).to(missing)


@torch.no_grad()
def system_shares(systems: Sequence[Float[Tensor, "n n"]]) -> list[Float[Tensor, "n n"]]:
    """`remaining_shares` from the layers' systems Dₗ = Kₗ Aₗ⁻¹ Kₗᵀ + s I, in the order of writing.

    Raises:
        InfeasibleError: Their sum is singular: the keys are dependent at all layers together.
    """
    shares: list[Tensor] = []
    total = torch.zeros_like(systems[-1])
    for gram in reversed(systems):
        total = total + gram
        # D T⁻¹ = (T⁻¹ D)ᵀ, both symmetric.
        factor, info = torch.linalg.cholesky_ex(total)
        if info.item():
            raise _dependent()
        shares.append(torch.cholesky_solve(gram, factor).T)
    return shares[::-1]


def _dependent() -> InfeasibleError:
    return InfeasibleError(
        "the optimal distribution needs independent keys, and these are not, even over all layers together. "
        f"{REMEDY} Under least squares, take a larger --set memorization.s"
    )
