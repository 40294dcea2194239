"""The share of a residual that each layer takes when the total preservation cost is to be smallest (``optimal``).

`distribution.py` says what is minimised and where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import InfeasibleError
from emendo.shapes import Keys
from emendo.solve.feasibility import REMEDY
from emendo.solve.metric import PreparedLayer


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
            raise InfeasibleError(
                "the optimal distribution needs independent keys, and these are not, even over all layers together. "
                f"{REMEDY} Under least squares, take a larger --set memorization.s"
            )
        shares.append(torch.cholesky_solve(gram, factor).T)
    return shares[::-1]
