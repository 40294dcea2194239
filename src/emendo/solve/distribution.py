"""How an edit is spread over the edited layers: which values are aimed at, and what each layer contributes.

A *step* writes one layer. It aims at the target value of some layer, measures what is still missing there on the
model edited so far, and takes a share of it. All but ``replay`` and ``ends`` aim at the last layer, and so assume that
what a lower layer writes passes through the residual stream unchanged.

``optimal`` is the exact minimiser of the total preservation cost Σ tr(Δₗ Aₗ Δₗᵀ) under that assumption. Split
R = Σ Rₗ; memorizing Rₗ at layer l costs tr(Rₗᵀ Dₗ⁻¹ Rₗ) with Dₗ = Kₗ Aₗ⁻¹ Kₗᵀ + s I, so the cheapest split is
Rₗ = Dₗ (Σ D)⁻¹ R. It is one solve on the layers' concatenated keys under a block-diagonal metric (for s > 0 at s times
the number of layers, since each may miss something of its part). For nearly independent keys D is diagonal, and a
layer's share of a request is in proportion to the request's leverage k A⁻¹ kᵀ there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import InfeasibleError, MethodError
from emendo.shapes import Keys
from emendo.solve import PreparedLayer
from emendo.solve.feasibility import REMEDY
from emendo.suggest import unknown_name

Distribution = Literal["single", "even", "sqrt", "ends", "replay", "optimal"]


@dataclass(frozen=True)
class Step:
    """One layer to write.

    Attributes:
        layer: The layer that is written.
        aim: The layer whose target value is aimed at.
        share: Part of what is still missing that the layer takes; None: by the joint split of `remaining_shares`.
    """

    layer: int
    aim: int
    share: float | None


def distribution_steps(distribution: Distribution, layers: Sequence[int]) -> tuple[Step, ...]:
    """The layers to write, ascending, with what each aims at and takes.

    Args:
        distribution: ``"single"`` (one layer takes all); ``"even"`` (1/(L−i): what is missing is divided by the number
            of layers still to be written, so the last takes the whole rest); ``"sqrt"`` (1/√(L−i)); ``"ends"`` (the
            first and the last layer, each with a target searched there); ``"replay"`` (a target searched at the first
            layer; each later layer aims at what it holds in a forward pass with that target); ``"optimal"`` (the
            cheapest split).
        layers: Edited layers, ascending.

    Raises:
        MethodError: ``"single"`` with several layers, or an unknown distribution.

    Source: MEMIT (arXiv 2210.07229) eq. 20 for even, PMET (arXiv 2308.08742) for sqrt, BLUE (arXiv 2502.03748) for
        ends, arXiv 2605.00358 for replay.
    """
    last, n = layers[-1], len(layers)
    if distribution == "single" and n != 1:
        raise MethodError(
            f"distribution 'single' writes one layer, found {n}; give one layer (--layers {last}) or "
            "--set distribution=even"
        )
    if distribution == "sqrt":
        return tuple(Step(layer, last, (n - position) ** -0.5) for position, layer in enumerate(layers))
    if distribution == "ends":
        return tuple(Step(layer, layer, 1.0) for layer in dict.fromkeys((layers[0], last)))
    if distribution == "replay":
        return tuple(Step(layer, layer, 1.0) for layer in layers)
    if distribution == "optimal" and n > 1:
        return tuple(Step(layer, last, None) for layer in layers)
    if distribution in ("single", "even", "optimal"):
        return tuple(Step(layer, last, 1 / (n - position)) for position, layer in enumerate(layers))
    raise MethodError(unknown_name("distribution", distribution, get_args(Distribution), "--set distribution=NAME"))


def searched_layers(distribution: Distribution, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers at which a target is searched; the values of other aims follow from a forward replay."""
    if distribution == "ends":
        return tuple(dict.fromkeys((layers[0], layers[-1])))
    return (layers[0],) if distribution == "replay" else (layers[-1],)


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
