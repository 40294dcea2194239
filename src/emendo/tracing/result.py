"""What a trace found: the grids of every fact, and their averages by class of position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import emendo.arguments as arguments
from emendo.errors import TraceError
from emendo.evaluate.bootstrap import Interval, quantile_interval, resampled_means
from emendo.tracing.facts import CLASSES, position_classes


@dataclass(frozen=True)
class KindTrace:
    """One grid of a fact.

    Attributes:
        scores: Mean score over the samples with one state restored, ``[length, layers]``; NaN where not asked for.
        spread: Standard deviation over the samples, likewise.
        state: 1 computed, 2 known without computing, 0 not asked for, ``[length, layers]``.
    """

    scores: Float[np.ndarray, "length layers"]
    spread: Float[np.ndarray, "length layers"]
    state: Int[np.ndarray, "length layers"]


@dataclass(frozen=True)
class FactTrace:
    """A traced fact.

    Attributes:
        prompt: Text with one ``{}`` for the subject.
        subject: Fills the slot.
        answer: The answer's first token, as text.
        said: The token that the unedited run gives, as text.
        tokens: Texts of the prompt's tokens.
        begin: First token of the subject.
        end: One past its last token.
        high: Score of the clean run, mean over the samples.
        low: Scores of the corrupted runs, ``[samples]``.
        grids: By kind.
        checked: Largest difference between the wave and an ordinary forward pass, on the cell that was checked.
    """

    prompt: str
    subject: str
    answer: str
    said: str
    tokens: tuple[str, ...]
    begin: int
    end: int
    high: float
    low: Float[np.ndarray, " samples"]
    grids: Mapping[str, KindTrace]
    checked: float

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return self.prompt.replace("{}", self.subject)

    @property
    def total_effect(self) -> float:
        """Score of the clean run less that of the corrupted ones."""
        return self.high - float(self.low.mean())

    @property
    def classes(self) -> tuple[str, ...]:
        """Class of every position."""
        return position_classes(len(self.tokens), self.begin, self.end)

    @arguments.checked
    def effects(self, kind: str) -> Float[np.ndarray, "length layers"]:
        """Indirect effects: what restoring one state gives back of the score.

        Raises:
            TraceError: The kind was not traced.
        """
        if kind not in self.grids:
            raise TraceError(f"{kind!r} was not traced; expected one of {', '.join(self.grids)} (kind=)")
        return self.grids[kind].scores - float(self.low.mean())

    @arguments.checked
    def strongest(self, kind: str) -> tuple[int, int]:
        """Token and layer of the largest indirect effect."""
        effects = np.nan_to_num(self.effects(kind), nan=-np.inf)
        token, layer = np.unravel_index(int(effects.argmax()), effects.shape)
        return int(token), int(layer)


@dataclass(frozen=True)
class Average:
    """Average indirect effect at one class of positions.

    Attributes:
        kind: What was restored.
        position: Class of positions.
        n: Facts that have such a position.
        mean: By layer.
        interval: 95 % bootstrap interval over facts, by layer; None of a single fact.
    """

    kind: str
    position: str
    n: int
    mean: tuple[float, ...]
    interval: tuple[Interval | None, ...]

    @property
    def peak(self) -> int:
        """Layer of the largest effect."""
        return int(np.argmax(self.mean))

    def to_dict(self) -> dict[str, Any]:
        """The average as JSON values."""
        interval = [None if i is None else list(i) for i in self.interval]
        return {
            "kind": self.kind,
            "position": self.position,
            "n": self.n,
            "mean": list(self.mean),
            "interval": interval,
            "peak": self.peak,
        }


@dataclass(frozen=True)
class Trace:
    """Facts traced under the same settings.

    Attributes:
        facts: In the order in which they were given.
        made: What made it: the model's identity, the settings, the measured deviation and from what.
        skipped: Facts that were not traced, with the reason.
    """

    facts: tuple[FactTrace, ...]
    made: dict[str, Any]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was restored."""
        return tuple(self.made["settings"]["kinds"])

    @arguments.checked
    def averages(self, *, n_resamples: arguments.Resamples = 1000, seed: arguments.Seed = 0) -> tuple[Average, ...]:
        """Average indirect effects by kind and class of position, with bootstrap intervals over facts.

        A fact with several positions of a class counts once, by their mean.

        Args:
            n_resamples: arguments.Resamples of the bootstrap.
            seed: Of the bootstrap.

        Source: average indirect effects, ROME (arXiv 2202.05262), figure 2.
        """
        found = []
        for kind in self.kinds:
            for position in CLASSES:
                rows = [row for fact in self.facts if (row := _class_mean(fact, kind, position)) is not None]
                if rows:
                    found.append(_average(kind, position, rows, n_resamples, seed))
        return tuple(found)


def _class_mean(fact: FactTrace, kind: str, position: str) -> Float[np.ndarray, " layers"] | None:
    places = [t for t, name in enumerate(fact.classes) if name == position]
    effects = fact.effects(kind)[places]
    effects = effects[np.isfinite(effects).all(axis=1)]
    return effects.mean(axis=0) if len(effects) else None


def _average(kind: str, position: str, rows: Sequence[np.ndarray], n_resamples: int, seed: int) -> Average:
    table = np.stack(rows)
    intervals: list[Interval | None] = [None] * table.shape[1]
    if len(table) > 1:
        means = resampled_means(table, n_resamples, seed)
        intervals = [quantile_interval(means[:, layer], 0.95) for layer in range(table.shape[1])]
    return Average(kind, position, len(table), tuple(table.mean(axis=0).tolist()), tuple(intervals))
