"""What an update costs, measured on its factors: Δ = RᵀQ is never formed."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import checked
from emendo.shapes import DualKeys, Moment, Residuals, Weight
from emendo.solve.block_moment import BlockMoment, times_moment


@checked
def preservation_cost(residuals: Residuals, dual_keys: DualKeys, moment: Moment | BlockMoment) -> float:
    """tr(Δ C Δᵀ): mean squared change of the layer's output on the preserved keys.

    Args:
        residuals: R.
        dual_keys: Q.
        moment: C, the mean second moment (or any other metric, to price the update in it).

    Returns:
        The cost, in squared units of the layer's output.

    Source: EMMET (arXiv 2403.14236), the preservation half of the objective.
    """
    folded = _fold(residuals, dual_keys)
    return float((times_moment(folded, moment) * folded).sum().item())


@checked
@torch.no_grad()
def output_power(weight: Weight, moment: Moment | BlockMoment) -> float:
    """tr(W C Wᵀ): mean square of the layer's output (bias aside) on the preserved keys, in float64.

    Args:
        weight: W.
        moment: C, on the device of the weight.

    Returns:
        What `preservation_cost` is relative to, in squared units of the layer's output.
    """
    weight = weight.double()
    return float((times_moment(weight, moment) * weight).sum().item())


@checked
def frobenius_norm(residuals: Residuals, dual_keys: DualKeys) -> float:
    """‖Δ‖_F of the update Δ = RᵀQ.

    Args:
        residuals: R.
        dual_keys: Q.

    Returns:
        The norm, never negative.
    """
    return math.sqrt(_fold(residuals, dual_keys).square().sum().item())


@torch.no_grad()
def _fold(residuals: Residuals, dual_keys: DualKeys) -> Float[Tensor, "r d_in"]:
    """A matrix of min(n, d_out) rows that maps every key to a vector as long as Δ maps it to.

    With Rᵀ = U S, U's columns orthonormal, it is S Q. Unlike tr((R Rᵀ)(Q M Qᵀ)) on the n×n Gram
    matrices, nothing cancels here where residuals or dual keys are nearly dependent.
    """
    dual_keys = dual_keys.detach().to(torch.float64)
    residuals = residuals.detach().to(dual_keys)
    folded: Tensor = torch.linalg.qr(residuals.T, mode="r").R @ dual_keys
    return folded
