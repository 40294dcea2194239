"""How an edit is spread over the edited layers: which values are aimed at, and what each layer contributes.

A *step* writes one layer. It aims at the target value of some layer, measures what is still missing there on the
model edited so far, and takes a share of it. All but ``replay`` and ``ends`` aim at the last layer, and so assume that
what a lower layer writes passes through the residual stream unchanged.

A distribution is an object: a subclass of `Distribution` and an entry of `DISTRIBUTIONS`.

``optimal`` is the exact minimiser of the total preservation cost Σ tr(Δₗ Aₗ Δₗᵀ) under that assumption. Split
R = Σ Rₗ; memorizing Rₗ at layer l costs tr(Rₗᵀ Dₗ⁻¹ Rₗ) with Dₗ = Kₗ Aₗ⁻¹ Kₗᵀ + s I, so the cheapest split is
Rₗ = Dₗ (Σ D)⁻¹ R. It is one solve on the layers' concatenated keys under a block-diagonal metric (for s > 0 at s times
the number of layers, since each may miss something of its part). For nearly independent keys D is diagonal, and a
layer's share of a request is in proportion to the request's leverage k A⁻¹ kᵀ there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from emendo.arguments import checked
from emendo.arguments.registry import Registry
from emendo.errors import MethodError


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


class Distribution(ABC):
    """How an edit is spread over layers.

    Attributes:
        name: What ``--set distribution=NAME`` calls it.
        passes_through: It divides one residual over layers, and so counts on what a lower layer writes reaching the
            upper ones unchanged. Families that norm the MLP's output do not offer that.
        divides_by_cost: Its shares are found from the keys of all layers together (`Step.share` is None), so it needs
            the cost of each edit in each layer.
        one_layer: It writes a single layer.
    """

    name: ClassVar[str]
    passes_through: ClassVar[bool] = True
    divides_by_cost: ClassVar[bool] = False
    one_layer: ClassVar[bool] = False

    @abstractmethod
    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """The layers to write, in the order of writing, with what each aims at and takes.

        Args:
            layers: Edited layers, ascending; at least one.

        Raises:
            MethodError: It cannot be spread over these layers.
        """

    def searched_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The layers at which a target is searched; the values of other aims follow from a forward replay."""
        return (layers[-1],)


class Even(Distribution):
    """1/(L−i): what is missing is divided by the number of layers still to be written; the last takes the whole rest.

    Source: MEMIT (arXiv 2210.07229) eq. 20.
    """

    name = "even"

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """All layers, each an equal part of what the layers before it left."""
        n = len(layers)
        return tuple(Step(layer, layers[-1], 1 / (n - position)) for position, layer in enumerate(layers))


class Single(Even):
    """One layer takes all."""

    name = "single"
    passes_through = False
    one_layer = True

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """The one layer."""
        if len(layers) != 1:
            raise MethodError(
                f"distribution 'single' writes one layer, found {len(layers)}; give one (--layers {layers[-1]}) or "
                "--set distribution=even"
            )
        return super().steps(layers)


class SquareRoot(Distribution):
    """1/√(L−i).

    Source: PMET (arXiv 2308.08742).
    """

    name = "sqrt"

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """All layers, each more than its even part."""
        n = len(layers)
        return tuple(Step(layer, layers[-1], (n - position) ** -0.5) for position, layer in enumerate(layers))


class Ends(Distribution):
    """The first and the last layer, each with a target searched there, nothing divided.

    Source: BLUE (arXiv 2502.03748).
    """

    name = "ends"
    passes_through = False

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """The first and the last layer; one that is both, once."""
        return tuple(Step(layer, layer, 1.0) for layer in self.searched_layers(layers))

    def searched_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Those that are written."""
        return tuple(dict.fromkeys((layers[0], layers[-1])))


class Replay(Distribution):
    """A target searched at the first layer; each later layer aims at what it holds in a forward pass with that target.

    Source: arXiv 2605.00358.
    """

    name = "replay"
    passes_through = False

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """All layers, each aiming at its own value."""
        return tuple(Step(layer, layer, 1.0) for layer in layers)

    def searched_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The first."""
        return (layers[0],)


class Optimal(Even):
    """The cheapest split, as above; a single layer takes all."""

    name = "optimal"
    divides_by_cost = True

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """All layers, with shares that `remaining_shares` finds."""
        if len(layers) == 1:
            return super().steps(layers)
        return tuple(Step(layer, layers[-1], None) for layer in layers)


DISTRIBUTIONS: Registry[Distribution] = Registry(
    "distribution",
    (Single(), Even(), SquareRoot(), Ends(), Replay(), Optimal()),
    of=Distribution,  # type: ignore[type-abstract]  # only isinstance asks for it
    group="emendo.distributions",
    option="--set distribution=VALUE",
    error=MethodError,
)
"""Every distribution by name."""


@checked
def register_distribution(distribution: Distribution, *, replace: bool = False) -> Distribution:
    """Add a distribution: ``--set distribution=NAME`` and ``distribution=`` of a method then take it.

    Args:
        distribution: An object of a subclass of `Distribution`.
        replace: Take the place of a registered one of the same name.

    Raises:
        PluginError: The name is taken, or it is no distribution.
    """
    return DISTRIBUTIONS.register(distribution, replace=replace)


def distribution_steps(distribution: str, layers: Sequence[int]) -> tuple[Step, ...]:
    """The layers that a named distribution writes, ascending, with what each aims at and takes.

    Args:
        distribution: Its name.
        layers: Edited layers, ascending.

    Raises:
        MethodError: An unknown distribution, or one that cannot be spread over these layers.
    """
    return DISTRIBUTIONS.named(distribution).steps(layers)


def searched_layers(distribution: str, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers at which a named distribution has a target searched."""
    return DISTRIBUTIONS.named(distribution).searched_layers(layers)
