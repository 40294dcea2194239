"""The CounterFact metrics aggregated over records, with intervals and what they leave out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from emendo.arguments import Confidence, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.bootstrap import (
    Interval,
    column_means,
    quantile_interval,
    resampled_means,
)
from emendo.evaluate.metrics import (
    RecordScore,
    argmax_accuracy,
    harmonic_score,
    mean_probability,
    neighborhood_magnitude,
    neighborhood_success,
    rewrite_magnitude,
    rewrite_success,
)

METRICS = ("ES", "PS", "NS", "S", "EM", "PM", "NM", "EA", "PA", "NA", "EP", "PP", "NP")
"""Every metric of `EditScores`, in the order of reports."""

_COLUMNS = tuple(name for name in METRICS if name != "S")


@dataclass(frozen=True)
class EditScores:
    """Metrics over records, in percent: mean over the prompts of a record, then over records.

    A metric is None where no record defines it: what compares with the true target needs
    `target_true`, and PS, PM, PA, PP, NS, NM, NA, NP need prompts of their kind. `notes` says in
    words what was left out.

    Attributes:
        ES: Probability, edited prompt: new target beats the true one.
        PS: Probability, paraphrases: new target beats the true one.
        NS: Probability, neighborhood prompts: true target beats the new one.
        S: Harmonic mean of ES, PS and NS.
        EM: Margin p(new) - p(true), edited prompt.
        PM: Margin p(new) - p(true), paraphrases.
        NM: Margin p(true) - p(new), neighborhood prompts.
        EA: Argmax, edited prompt: every token of the new target.
        PA: Argmax, paraphrases: every token of the new target.
        NA: Argmax, neighborhood prompts: every token of the true target.
        EP: p(new), edited prompt.
        PP: p(new), paraphrases.
        NP: p(true), neighborhood prompts.
        n: Records.
        counts: Records behind each metric (for S: the fewest of its three).
        intervals: Bootstrap interval of each metric, resampling records; None below two records.
        confidence: Of the intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        notes: What is undefined or left out, and why.
    """

    ES: float | None
    PS: float | None
    NS: float | None
    S: float | None
    EM: float | None
    PM: float | None
    NM: float | None
    EA: float | None
    PA: float | None
    NA: float | None
    EP: float | None
    PP: float | None
    NP: float | None
    n: int
    counts: dict[str, int]
    intervals: dict[str, Interval | None]
    confidence: float
    n_resamples: int
    seed: int
    notes: tuple[str, ...] = field(default=())

    @classmethod
    @checked
    def from_records(
        cls,
        records: Sequence[RecordScore],
        *,
        confidence: Confidence = 0.95,
        n_resamples: Resamples = 1000,
        seed: Seed = 0,
    ) -> EditScores:
        """Aggregate scored records.

        Args:
            records: At least one.
            confidence: Of the bootstrap intervals.
            n_resamples: Of the bootstrap.
            seed: Of the bootstrap.

        Raises:
            InputError: There is no record, or a bootstrap setting is out of range.
        """
        if not records:
            raise InputError("there is nothing to aggregate: the list of scored records is empty")
        table = np.array([[row[name] for name in _COLUMNS] for row in map(record_measures, records)])
        defined = np.isfinite(table)
        values = _with_score(column_means(table, np.ones((1, len(records)))))[0]
        counts = dict(zip(_COLUMNS, defined.sum(axis=0).tolist(), strict=True))
        counts["S"] = min(counts[name] for name in ("ES", "PS", "NS"))
        resampled = _with_score(resampled_means(table, n_resamples, seed))
        names = (*_COLUMNS, "S")
        return cls(
            **{name: _percent(value) for name, value in zip(names, values, strict=True)},
            n=len(records),
            counts={name: counts[name] for name in METRICS},
            intervals={
                name: _percent_interval(resampled[:, names.index(name)], counts[name], confidence) for name in METRICS
            },
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
            notes=tuple(_notes(records, score_defined=not math.isnan(values[-1]))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a metric that is not defined is null."""
        return {
            "n": self.n,
            **{name: getattr(self, name) for name in METRICS},
            "counts": dict(self.counts),
            "intervals": {
                name: None if interval is None else list(interval) for name, interval in self.intervals.items()
            },
            "bootstrap": {
                "confidence": self.confidence,
                "n_resamples": self.n_resamples,
                "seed": self.seed,
                "unit": "record",
            },
            "notes": list(self.notes),
        }


def record_measures(record: RecordScore) -> dict[str, float]:
    """Every metric of one record as a share; NaN where the record does not define it."""
    row: dict[str, float] = dict.fromkeys(_COLUMNS, math.nan)
    groups = (("E", record.efficacy), ("P", record.paraphrase), ("N", record.neighborhood))
    for letter, prompts in groups:
        neighborhood = letter == "N"
        compared = [(p.target, p.target_true) for p in prompts if p.target_true is not None]
        if compared:
            new, true = [n.nll for n, _ in compared], [t.nll for _, t in compared]
            if neighborhood:
                row["NS"] = neighborhood_success(new, true)
                row["NM"] = neighborhood_magnitude(new, true)
            else:
                row[f"{letter}S"] = rewrite_success(new, true)
                row[f"{letter}M"] = rewrite_magnitude(new, true)
        expected = [t for _, t in compared] if neighborhood else [p.target for p in prompts]
        if expected:
            row[f"{letter}A"] = argmax_accuracy(expected)
            row[f"{letter}P"] = mean_probability(expected)
    return row


def _with_score(
    means: Float[np.ndarray, "resamples metrics"],
) -> Float[np.ndarray, "resamples more"]:
    """Append S to rows of column means."""
    parts = means[:, [_COLUMNS.index(name) for name in ("ES", "PS", "NS")]]
    score = np.full(len(means), np.nan)
    for i, (es, ps, ns) in enumerate(parts.tolist()):
        if not any(map(math.isnan, (es, ps, ns))):
            score[i] = harmonic_score(es, ps, ns)
    return np.column_stack([means, score])


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * float(value)


def _percent_interval(samples: np.ndarray, count: int, confidence: float) -> Interval | None:
    return None if count < 2 else quantile_interval(100 * samples, confidence)


def _notes(records: Sequence[RecordScore], score_defined: bool) -> list[str]:
    """What the aggregate leaves out, in words."""
    notes = []
    n = len(records)
    unknown = [record for record in records if record.target_true is None]
    if len(unknown) == n:
        notes.append("No target_true: ES, PS, NS and S were not measured")
    elif unknown:
        skipped = sum(len(record.neighborhood) for record in unknown)
        notes.append(
            f"{len(unknown)} of {n} records have no target_true: they count in EA, PA, EP and PP only, and their "
            f"{skipped} neighborhood prompts count nowhere"
        )
    for kind, names, missing in (
        ("paraphrase", "PS, PM, PA, PP", sum(not record.paraphrase for record in records)),
        ("neighborhood", "NS, NM, NA, NP", sum(not record.neighborhood for record in records)),
    ):
        if missing:
            notes.append(f"{missing} of {n} records have no {kind}_prompts: they do not count in {names}")
    same = sum(record.target == record.target_true for record in records)
    if same:
        notes.append(
            f"{same} of {n} records have target equal to target_true: every comparison is a tie, which counts 0"
        )
    if not score_defined and len(unknown) < n:
        notes.append("S is not defined: it needs ES, PS and NS")
    return notes
