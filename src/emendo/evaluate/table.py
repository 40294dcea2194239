"""Means over records of any set of measures, with bootstrap intervals and what each mean rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from emendo.arguments import Confidence, Resamples, Seed, checked
from emendo.arguments.words import shown
from emendo.errors import InputError
from emendo.evaluate.bootstrap import Interval, column_means, quantile_interval, resampled_means
from emendo.evaluate.metrics import harmonic_mean


@dataclass(frozen=True)
class Means:
    """Means over records.

    Attributes:
        values: Mean of each measure over the records that define it; None where none does.
        intervals: Bootstrap interval of each mean, resampling records; None below two records.
        counts: Records behind each mean (for a harmonic mean: the fewest of its parts).
        n: Records.
        confidence: Of the intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    values: dict[str, float | None]
    intervals: dict[str, Interval | None]
    counts: dict[str, int]
    n: int
    confidence: float
    n_resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "n": self.n,
            **self.values,
            "counts": dict(self.counts),
            "intervals": {name: None if ends is None else list(ends) for name, ends in self.intervals.items()},
            "bootstrap": {
                "confidence": self.confidence,
                "n_resamples": self.n_resamples,
                "seed": self.seed,
                "unit": "record",
            },
        }


@checked
def mean_over_records(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    harmonic: Mapping[str, Sequence[str]] | None = None,
    scale: float = 1.0,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> Means:
    """Mean of each measure over records, and harmonic means *of those means*.

    Args:
        rows: The measures of each record; one that is missing or None is not defined for it.
        names: The measures.
        harmonic: Further measures, each the harmonic mean of some of the others after averaging.
        scale: Factor on everything, such as 100 for percent.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: There is no record, a measure is infinite, or a bootstrap setting is out of range.
    """
    if not rows:
        raise InputError("there is nothing to average: the list of records is empty")
    cells = [[row.get(name) for name in names] for row in rows]
    if wrong := [cell for row in cells for cell in row if not isinstance(cell, Real | None)]:
        raise InputError(f"found {shown(wrong[0])} for a measure; expected a number or None (rows=)")
    table = np.array([[math.nan if cell is None else cell for cell in row] for row in cells], dtype=np.float64)
    table = table.reshape(len(rows), len(names))
    if np.isinf(table).any():
        raise InputError("a mean needs finite measures; drop or repair the records that are not")
    harmonic = dict(harmonic or {})
    if unknown := [part for members in harmonic.values() for part in members if part not in names]:
        raise InputError(f"found {unknown[0]!r} in a harmonic mean; expected one of {', '.join(names)} (harmonic=)")
    parts = {name: [list(names).index(part) for part in members] for name, members in harmonic.items()}
    means = _with_harmonic(column_means(table, np.ones((1, len(rows)))), parts)[0]
    resampled = _with_harmonic(resampled_means(table, n_resamples, seed), parts)
    counts = dict(zip(names, np.isfinite(table).sum(axis=0).tolist(), strict=True))
    counts |= {name: min(counts[part] for part in members) for name, members in harmonic.items()}
    everything = [*names, *harmonic]
    return Means(
        values={
            name: None if math.isnan(mean) else scale * float(mean)
            for name, mean in zip(everything, means, strict=True)
        },
        intervals={
            name: quantile_interval(scale * resampled[:, column], confidence) if counts[name] > 1 else None
            for column, name in enumerate(everything)
        },
        counts=counts,
        n=len(rows),
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def _with_harmonic(means: np.ndarray, parts: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Append harmonic means to rows of column means; undefined where a part is."""
    columns = [
        [math.nan if any(map(math.isnan, row)) else harmonic_mean(row) for row in means[:, members].tolist()]
        for members in parts.values()
    ]
    return np.column_stack([means, *columns])
