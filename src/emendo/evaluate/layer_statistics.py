"""Does a trace say where to edit? Statistics of a measured sweep over layers beside causal effects at the same layers.

Facts are the unit: every interval resamples facts with all their layers, so that what is compared is always measured on
the same facts (paired bootstrap). Layers are no sample and are never resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from emendo.arguments import Confidence, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.bootstrap import Interval, quantile_interval

Outcomes = Float[np.ndarray, "facts layers"]
Shares = Float[np.ndarray, "facts layers 3"]
Counts = Float[np.ndarray, "resamples facts"]


@dataclass(frozen=True)
class Estimate:
    """A number with its bootstrap interval over facts.

    Attributes:
        value: On all facts; NaN where it is not defined (nothing varies).
        interval: None below two facts, or where no resample defines it.
    """

    value: float
    interval: Interval | None

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; what is not defined is null."""
        value = None if np.isnan(self.value) else self.value
        return {"value": value, "interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True)
class Explained:
    """How much of an outcome by fact and layer is explained.

    Attributes:
        layer: R² of the layer alone, as a category.
        tracing: R² of the causal effect alone.
        both: R² of both.
        gain: What the effect adds to the layer, both − layer; never negative by construction.
        slope: Of the outcome on the effect within layers.
    """

    layer: Estimate
    tracing: Estimate
    both: Estimate
    gain: Estimate
    slope: Estimate

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {name: estimate.to_dict() for name, estimate in vars(self).items()}


@dataclass(frozen=True)
class Standing:
    """Layers against the best one.

    Attributes:
        best: Index of the layer with the highest S.
        behind: S of the best less that of each layer, in points.
        alike: Whether each layer cannot be told from the best: the interval of what it is behind reaches 0.
    """

    best: int
    behind: tuple[Estimate, ...]
    alike: tuple[bool, ...]


def draws(facts: int, n_resamples: int, seed: int) -> Counts:
    """How often every fact is in each resample."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, facts, size=(n_resamples, facts)) + facts * np.arange(n_resamples)[:, None]
    found: np.ndarray = np.bincount(drawn.ravel(), minlength=n_resamples * facts).reshape(n_resamples, facts)
    return found.astype(np.float64)


def score(shares: Shares, counts: Counts | None = None) -> Float[np.ndarray, "resamples layers"]:
    """S of every layer in points: the harmonic mean of ES, PS and NS, each the mean over the facts that define it.

    Args:
        shares: ES, PS and NS of every fact at every layer, in [0, 1]; NaN where a fact does not define it.
        counts: How often every fact counts; None: each once.

    Source: the score of CounterFact, ROME (arXiv 2202.05262).
    """
    counts = np.ones((1, len(shares))) if counts is None else counts
    defined = np.isfinite(shares)
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.tensordot(counts, np.where(defined, shares, 0.0), axes=1)
        means = sums / np.tensordot(counts, defined.astype(np.float64), axes=1)
        harmonic: np.ndarray = 3 / (1 / means).sum(axis=-1)
    return 100 * harmonic


@checked
def rank_correlation(
    effects: Outcomes, shares: Shares, *, confidence: Confidence = 0.95, n_resamples: Resamples = 1000, seed: Seed = 0
) -> Estimate:
    """Spearman's correlation over layers of the mean causal effect with S.

    Args:
        effects: Causal effect of every fact at every layer.
        shares: ES, PS and NS likewise, in [0, 1].
        confidence: Of the interval.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: The tables are not of the same facts and layers.
    """
    counts = _checked(effects, shares, confidence, n_resamples, seed)
    value = spearman(effects.mean(axis=0), score(shares)[0])
    means, scores = (counts @ effects) / counts.sum(axis=1, keepdims=True), score(shares, counts)
    found = np.array([spearman(a, b) for a, b in zip(means, scores, strict=True)])
    return _estimate(value, found, len(effects), confidence)


@checked
def explained(
    effects: Outcomes,
    outcomes: Outcomes,
    *,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> Explained:
    """How much of an outcome by fact and layer the layer, the causal effect and both explain.

    Least squares with an intercept for each layer, one slope on the effect, or both. R² is that of the fit to the data
    themselves, so a predictor that says nothing still adds about 1 / (facts · layers).

    Args:
        effects: Causal effect of every fact at every layer.
        outcomes: What an edit there does, likewise.
        confidence: Of the intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: The tables are not of the same facts and layers.

    Source: arXiv 2301.04213, section 4: edit success regressed on the layer and on the tracing effect.
    """
    counts = _checked(effects, outcomes, confidence, n_resamples, seed)
    values = _fits(effects, outcomes, np.ones((1, len(effects))))[0]
    found = _fits(effects, outcomes, counts)
    estimates = [_estimate(values[i], found[:, i], len(effects), confidence) for i in range(5)]
    return Explained(*estimates)


@checked
def standing(
    shares: Shares, *, confidence: Confidence = 0.95, n_resamples: Resamples = 1000, seed: Seed = 0
) -> Standing:
    """Which layers cannot be told from the one with the highest S.

    Intervals are of each layer against the best one, by themselves: with many layers some are told apart by chance.

    Args:
        shares: ES, PS and NS of every fact at every layer, in [0, 1].
        confidence: Of the intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    counts = _checked(shares, shares, confidence, n_resamples, seed)
    here, drawn = score(shares)[0], score(shares, counts)
    best = int(np.nanargmax(here))
    behind = tuple(
        _estimate(float(here[best] - here[layer]), drawn[:, best] - drawn[:, layer], len(shares), confidence)
        for layer in range(shares.shape[1])
    )
    alike = tuple(
        layer == best or (row.interval is not None and row.interval[0] <= 0) for layer, row in enumerate(behind)
    )
    return Standing(best, behind, alike)


def regret(effects: Outcomes, shares: Shares, standing: Standing) -> tuple[int, Estimate]:
    """What following the trace alone costs: the layer of its largest mean effect, and how far S is behind there.

    Args:
        effects: Causal effect of every fact at every layer.
        shares: ES, PS and NS likewise.
        standing: Of the same layers.
    """
    _check_same(effects, shares)
    chosen = int(np.argmax(effects.mean(axis=0)))
    return chosen, standing.behind[chosen]


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of them does not vary or is not finite.

    Source: Spearman 1904; ties get their mean rank.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    p, q = ranks(x) - (len(x) - 1) / 2, ranks(y) - (len(y) - 1) / 2
    size = float(np.sqrt((p @ p) * (q @ q)))
    return float(p @ q) / size if size > 0 else float("nan")


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: np.ndarray = ((ends - counts + ends - 1) / 2)[inverse]
    return found


def _fits(effects: Outcomes, outcomes: Outcomes, counts: Counts) -> Float[np.ndarray, "resamples 5"]:
    """R² of layer, tracing, both; both − layer; and the slope within layers: least squares in closed form."""
    facts = counts.sum(axis=1)[:, None]
    x, y = (counts @ effects) / facts, (counts @ outcomes) / facts  # means of each layer
    # Centred on all data first: sums of squares of large numbers would cancel.
    cx, cy = effects - effects.mean(), outcomes - outcomes.mean()
    mx, my = x - effects.mean(), y - outcomes.mean()

    def within(a: Outcomes, b: Outcomes, ma: np.ndarray, mb: np.ndarray) -> np.ndarray:
        found: np.ndarray = (counts @ (a * b) - facts * ma * mb).sum(axis=1)
        return found

    def between(ma: np.ndarray, mb: np.ndarray) -> np.ndarray:
        da, db = ma - ma.mean(axis=1, keepdims=True), mb - mb.mean(axis=1, keepdims=True)
        found: np.ndarray = facts[:, 0] * (da * db).sum(axis=1)
        return found

    wxx, wxy, wyy = within(cx, cx, mx, mx), within(cx, cy, mx, my), within(cy, cy, my, my)
    txx, txy, tyy = wxx + between(mx, mx), wxy + between(mx, my), wyy + between(my, my)
    with np.errstate(invalid="ignore", divide="ignore"):
        layer = 1 - wyy / tyy
        tracing = np.where(txx > 0, txy**2 / (txx * tyy), 0.0)
        varies = wxx > 1e-12 * txx  # else the effect is the layer, up to rounding
        gain = np.where(varies, wxy**2 / (wxx * tyy), 0.0)
        slope = np.where(varies, wxy / wxx, np.nan)
    still = tyy <= 0
    table = np.column_stack([layer, tracing, layer + gain, gain, slope])
    table[still] = np.nan
    return table


def _estimate(value: float, drawn: np.ndarray, facts: int, confidence: float) -> Estimate:
    return Estimate(float(value), quantile_interval(drawn, confidence) if facts > 1 else None)


def _checked(a: np.ndarray, b: np.ndarray, confidence: float, n_resamples: int, seed: int) -> Counts:
    _check_same(a, b)
    return draws(len(a), n_resamples, seed)


def _check_same(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[:2] != b.shape[:2] or a.ndim < 2 or not a.size:
        raise InputError(
            f"expected tables of the same facts and layers, found {a.shape[:2]} and {b.shape[:2]} [facts, layers]"
        )
