"""A distribution over layers: every layer takes half of what is still missing, the last one all of it."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.solve.distribution import Distribution, Step


class Decay(Distribution):
    """One half, one quarter, ..., and the last layer takes the rest."""

    name = "decay"

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """All layers, ascending; every one aims at the value of the last."""
        last = layers[-1]
        return tuple(Step(layer, last, 1.0 if layer == last else 0.5) for layer in layers)


DECAY = Decay()
