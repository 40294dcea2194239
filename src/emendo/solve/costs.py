"""What an update costs, measured on its factors: Δ = RᵀQ is never formed."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import check_width, checked
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
@torch.no_grad()
def drift_over_price(residuals: Residuals, dual_keys: DualKeys, moment: BlockMoment) -> float | None:
    """What an update really changes on preserved keys of a mixture, over what its blocks price that at.

    A price block by block leaves out that the experts of one token can push its output the same way or against each
    other: ``E ‖Σₑ Δₑ φₑ‖²`` over ``E Σₑ ‖Δₑ φₑ‖²``, both on the keys that were kept whole. Between 0 and the number of
    experts that a token takes.

    Args:
        residuals: R.
        dual_keys: Q, of stacked width.
        moment: The blocks, with their sample.

    Returns:
        The ratio; None where no key was kept, or the update changes nothing at those that were.
    """
    check_width("dual_keys", dual_keys, moment.shape[0])
    if (sample := moment.sample) is None:
        return None
    whole: Tensor = residuals.new_zeros(len(sample.keys), residuals.shape[1], dtype=torch.float64)
    parts = dual_keys.detach().double().view(len(dual_keys), moment.experts, moment.width)
    weights, price = sample.weights.to(whole), 0.0
    for expert in sample.experts.unique().tolist():
        tokens, places = torch.where(sample.experts == expert)
        firing = sample.keys[tokens, places].to(parts) @ parts[:, expert].T
        given = firing @ residuals.detach().double()
        price += float((given.square().sum(dim=1) * weights[tokens.to(weights.device)]).sum())
        whole.index_add_(0, tokens.to(whole.device), given)
    return float((whole.square().sum(dim=1) * weights).sum()) / price if price else None


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
