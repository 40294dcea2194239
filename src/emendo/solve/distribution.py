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

from emendo.errors import MethodError
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
