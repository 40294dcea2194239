"""Percentile bootstrap of means over records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from emendo.arguments import Confidence, Measured, Resamples, Seed, checked
from emendo.errors import InputError

Interval: TypeAlias = tuple[float, float]
Table: TypeAlias = Float[np.ndarray, "records metrics"]

_RESAMPLE_CELLS = 4_000_000
"""Draws held at once while resampling, to bound memory."""


@checked
def bootstrap_interval(
    values: Sequence[Measured] | Float[np.ndarray, " records"],
    *,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> Interval | None:
    """Percentile bootstrap interval of a mean.

    Args:
        values: One number per record.
        confidence: Share of resampled means inside the interval.
        n_resamples: Number of resamples.
        seed: Of the generator; the same seed and values give the same interval.

    Returns:
        Lower and upper end; None with fewer than two values, which say nothing about spread.

    Raises:
        InputError: A setting is out of range, or a value is not finite.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    table = np.asarray(values, dtype=np.float64)[:, None]
    if not np.isfinite(table).all():
        raise InputError("a bootstrap needs finite values; drop or repair those that are not")
    if len(table) < 2:
        return None
    means = resampled_means(table, n_resamples, seed)
    return quantile_interval(means[:, 0], confidence)


def resampled_means(table: Table, n_resamples: int, seed: int) -> Float[np.ndarray, "resamples metrics"]:
    """Column means of records drawn with replacement, the same records for every column.

    NaN marks a record that does not define the column's metric; see `column_means`.
    """
    n = len(table)
    generator = np.random.default_rng(seed)
    step = max(1, _RESAMPLE_CELLS // n)
    parts = []
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = generator.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        parts.append(column_means(table, counts.astype(np.float64)))
    return np.concatenate(parts)


def quantile_interval(samples: Float[np.ndarray, " resamples"], confidence: float) -> Interval | None:
    """Central interval of bootstrap samples; those that define no metric (NaN) are left out."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return None
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def column_means(
    table: Table, weights: Float[np.ndarray, "resamples records"]
) -> Float[np.ndarray, "resamples metrics"]:
    """Weighted mean of each column over the records that define it; NaN where none does."""
    defined = np.isfinite(table)
    totals = weights @ np.where(defined, table, 0.0)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = totals / (weights @ defined.astype(np.float64))
    return means
