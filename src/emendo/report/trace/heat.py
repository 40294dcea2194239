"""Heat maps as plain data: one colour scale for all kinds, zero white, negative effects in another hue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emendo.tracing import Average, FactTrace, Trace

KIND_NAMES = {
    "hidden": "state after a block",
    "mlp": "output of the MLP",
    "attention": "output of attention",
    "hidden-without-mlp": "state after a block, MLPs above severed",
    "hidden-without-attention": "state after a block, attention above severed",
}

_POSITIVE, _NEGATIVE, _ABSENT = (8, 48, 107), (166, 54, 3), (225, 225, 225)


@dataclass(frozen=True)
class Heat:
    """One grid of effects.

    Attributes:
        title: What was restored.
        rows: Label of every row, and whether it belongs to the subject.
        values: Effects, rows × layers; None where not asked for.
    """

    title: str
    rows: tuple[tuple[str, bool], ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def layers(self) -> int:
        """Columns."""
        return len(self.values[0])


def fact_heats(fact: FactTrace, kinds: Sequence[str]) -> list[Heat]:
    """The grids of a fact."""
    rows = tuple((shown_token(text), fact.begin <= t < fact.end) for t, text in enumerate(fact.tokens))
    return [Heat(KIND_NAMES[kind], rows, _values(fact.effects(kind))) for kind in kinds]


def average_heats(trace: Trace, averages: Sequence[Average]) -> list[Heat]:
    """The averages of each kind: a row for each class of positions that a fact has, with the number of facts."""
    heats = []
    for kind in trace.kinds:
        own = [average for average in averages if average.kind == kind and average.position != "before"]
        rows = tuple((f"{average.position} (n {average.n})", "subject" in average.position) for average in own)
        heats.append(Heat(KIND_NAMES[kind], rows, _values(np.array([average.mean for average in own]))))
    return heats


def scale_of(heats: Sequence[Heat]) -> tuple[float, float]:
    """Smallest and largest value, zero among them."""
    found = [value for heat in heats for row in heat.values for value in row if value is not None]
    return min(0.0, *found), max(0.0, *found)


def colour(value: float | None, scale: tuple[float, float]) -> str:
    """The colour of a value: white at zero; both hues reach their full depth at the same distance from it."""
    if value is None:
        return _hex(_ABSENT)
    most = max(-scale[0], scale[1]) or 1.0
    share = min(1.0, abs(value) / most)
    # The root lets small effects be seen beside large ones; the bar of the legend has the same steps.
    depth = math.sqrt(share)
    full = _POSITIVE if value >= 0 else _NEGATIVE
    return _hex(tuple(round(255 + (part - 255) * depth) for part in full))


def legend(scale: tuple[float, float], steps: int = 41) -> list[tuple[float, str]]:
    """Values from the smallest to the largest, and their colours."""
    low, high = scale
    values = [low + (high - low) * i / (steps - 1) for i in range(steps)]
    return [(value, colour(value, scale)) for value in values]


def shown_token(text: str) -> str:
    """A token that can be read: its spaces and line breaks are visible."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "·"


def _values(effects: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(float(v) if math.isfinite(v) else None for v in row) for row in effects)


def _hex(parts: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*parts)
