"""What a sweep over layers and a trace say together, and which layers are recommended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from emendo.evaluate.layer_statistics import (
    Estimate,
    Explained,
    Standing,
    explained,
    rank_correlation,
    regret,
    standing,
)
from emendo.tracing import Trace

OUTCOMES: Mapping[str, str] = {
    "EP": "probability of the new target, edited prompt",
    "PP": "probability of the new target, paraphrases",
    "NM": "margin of the true target, neighbors",
}
"""What an edit of one fact at one layer does, and is explained by the layer and by the trace."""

POSITIONS = ("last subject", "last")


@dataclass(frozen=True)
class Place:
    """A layer, or neighboring layers, that all facts were edited at.

    Attributes:
        layers: Ascending.
        scores: CounterFact metrics in percent, with intervals; empty where it failed.
        measures: Every metric of every fact, ``[facts]`` each, as shares.
        perplexity_ratio: On held-out text, after over before.
        relative_norm: ‖ΔW‖ / ‖W‖, the largest over its layers.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ), summed over its layers.
        target_nll: −log p of the target at the δ that was found, nats a token, mean over facts.
        delta_ratio: ‖δ‖ / ‖h‖, mean over facts.
        leverage: k A⁻¹ kᵀ, mean over facts and layers.
        seconds: What it took.
        error: Why nothing could be edited here; None where all went well.
    """

    layers: tuple[int, ...]
    scores: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, np.ndarray] = field(default_factory=dict)
    perplexity_ratio: float | None = None
    relative_norm: float | None = None
    relative_cost: float | None = None
    target_nll: float | None = None
    delta_ratio: float | None = None
    leverage: float | None = None
    seconds: float | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """As `--layers` takes it."""
        first, last = self.layers[0], self.layers[-1]
        return str(first) if first == last else f"{first}-{last}"


@dataclass(frozen=True)
class LayerStudy:
    """A sweep and a trace over the same facts.

    Attributes:
        model: Identity of the model.
        n_layers: Of the model.
        made: Data and settings.
        facts: Their prompts.
        places: Everything that was edited, single layers first.
        before: Every metric of every fact in the unedited model.
        trace: Of the same facts.
        known: Traced facts of which the model says the true answer; the others are traced for what it says.
    """

    model: Mapping[str, str]
    n_layers: int
    made: Mapping[str, Any]
    facts: tuple[str, ...]
    places: tuple[Place, ...]
    before: Mapping[str, np.ndarray]
    trace: Trace
    known: int

    @cached_property
    def edited(self) -> tuple[Place, ...]:
        """Places where the edits could be made."""
        return tuple(place for place in self.places if place.error is None)

    @cached_property
    def standing(self) -> Standing:
        """Every edited place against the best."""
        return standing(self._shares(list(self.edited), np.arange(len(self.facts))))

    @cached_property
    def recommended(self) -> Place:
        """Of the places that cannot be told from the best the one that costs preserved text least."""
        alike = [place for place, same in zip(self.edited, self.standing.alike, strict=True) if same]
        return min(alike, key=lambda place: float("inf") if place.relative_cost is None else place.relative_cost)

    @property
    def predictors(self) -> list[tuple[str, str]]:
        """Kind and position of every causal effect."""
        return [(kind, position) for kind in self.trace.kinds for position in POSITIONS]

    @property
    def single(self) -> list[Place]:
        """Single layers that could be edited."""
        return [place for place in self.edited if len(place.layers) == 1]

    def effects(self, kind: str, position: str) -> np.ndarray:
        """Causal effect of every traced fact at every layer of the model, ``[traced, n_layers]``."""
        rows = []
        for fact in self.trace.facts:
            token = fact.end - 1 if position == "last subject" else len(fact.tokens) - 1
            rows.append(fact.effects(kind)[token])
        return np.stack(rows)

    @cached_property
    def correlations(self) -> dict[tuple[str, str], Estimate]:
        """Rank correlation over single layers of each mean effect with S."""
        return {
            pair: rank_correlation(self.effects(*pair)[:, self._single_layers], self._traced_shares)
            for pair in self.predictors
        }

    @cached_property
    def regrets(self) -> dict[tuple[str, str], tuple[int, Estimate]]:
        """For each mean effect the single layer where it is largest, and how far S is behind the best there."""
        found = {}
        against = standing(self._traced_shares)
        for pair in self.predictors:
            chosen, behind = regret(self.effects(*pair)[:, self._single_layers], self._traced_shares, against)
            found[pair] = self._single_layers[chosen], behind
        return found

    @cached_property
    def explained(self) -> dict[tuple[str, str, str], tuple[int, Explained]]:
        """By outcome, kind and position: facts, and what layer, effect and both explain of it."""
        found = {}
        for outcome in OUTCOMES:
            table = np.stack([place.measures[outcome][self._traced] for place in self.single], axis=1)
            whole = np.isfinite(table).all(axis=1)
            if whole.sum() < 2:
                continue
            for kind, position in self.predictors:
                effects = self.effects(kind, position)[:, self._single_layers][whole]
                found[outcome, kind, position] = int(whole.sum()), explained(effects, table[whole])
        return found

    @property
    def _single_layers(self) -> list[int]:
        return [place.layers[0] for place in self.single]

    @cached_property
    def _traced(self) -> np.ndarray:
        """Numbers of the traced facts."""
        number = {text: place for place, text in enumerate(self.facts)}
        return np.array([number[fact.text] for fact in self.trace.facts])

    @cached_property
    def _traced_shares(self) -> np.ndarray:
        return self._shares(self.single, self._traced)

    def _shares(self, places: list[Place], rows: np.ndarray) -> np.ndarray:
        columns = [np.stack([place.measures[name][rows] for name in ("ES", "PS", "NS")], axis=-1) for place in places]
        return np.stack(columns, axis=1)
