"""Measures beside the scores: generated answers, distribution shift, entropy, and a data set's own questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from emendo.evaluate import (
    GENERATED_METRICS,
    NextTokenLogProbs,
    distribution_shift,
    entropy_of_records,
    generation_scores,
    next_token_log_probs,
    wilson_interval,
)
from emendo.evaluate.table import mean_over_records
from emendo.experiments.cells import Measures
from emendo.experiments.questions import probe_rows, zsre_rows
from emendo.models import ModelAdapter
from emendo.requests import EditRecord

ANSWER_TOKENS = 32
"""Most tokens of a generated answer."""

ENTROPY_RECORDS = 24
"""Records of a cell of which one text each is continued freely to measure entropy."""

FREE_TEXT: Mapping[str, Any] = {"include_prompt": True, "total_tokens": 100, "top_k": 5, "seed": 0}
"""How these texts are made, as published; the seed is that of the sampling."""

_ONCE = 1
"""Bootstraps are made over all records of a cell, not of each batch."""


def generated_rows(adapter: ModelAdapter, records: Sequence[EditRecord]) -> list[dict[str, Any]]:
    """Every record's generated answers with their shares of matches, raw and through the chat template.

    Returns:
        For each record ``raw`` and ``chat`` (null for a model without a template): the shares by name, and under
        ``answers`` every generation.
    """
    rows: list[dict[str, Any]] = [{"raw": None, "chat": None} for _ in records]
    kinds = {"raw": False} | ({"chat": True} if adapter.tokenizer.chat_template else {})
    for kind, chat in kinds.items():
        found = generation_scores(adapter, records, chat=chat, new_tokens=ANSWER_TOKENS, n_resamples=_ONCE).records
        for row, record in zip(rows, found, strict=True):
            row[kind] = {**record.measures(), "answers": asdict(record)}
    return rows


def generated_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means in percent over records with intervals, for ``raw`` and ``chat``; null where it was not asked."""
    found: dict[str, Any] = {}
    for kind in ("raw", "chat"):
        known = [row[kind] for row in rows if row[kind] is not None]
        found[kind] = mean_over_records(known, GENERATED_METRICS, scale=100).to_dict() if known else None
    return found


def text_entropies(adapter: ModelAdapter, records: Sequence[EditRecord], first: int) -> list[float]:
    """GE in bits of one free text for each record that is among the first `ENTROPY_RECORDS` of its cell.

    Args:
        adapter: The model as it stands.
        records: Consecutive records of the cell.
        first: Position of the first of them.
    """
    asked = [
        (*record.generation_prompts, record.request.text)[:1] if first + at < ENTROPY_RECORDS else ()
        for at, record in enumerate(records)
    ]
    if not any(asked):
        return []
    # The place of a record in its cell names its stream of random numbers.
    scores = entropy_of_records(adapter, [*[()] * first, *asked], **FREE_TEXT, n_resamples=_ONCE)
    return [text.entropy for texts in scores.records for text in texts]


class Extras:
    """The further measures of one cell.

    Args:
        adapter: The model.
        measures: Which are wanted.
        zsre: Whether the records are of zsRE.
    """

    def __init__(self, adapter: ModelAdapter, measures: Measures, zsre: bool = False) -> None:
        self.adapter, self.measures, self.zsre = adapter, measures, zsre

    def reference(self, records: Sequence[EditRecord]) -> NextTokenLogProbs | None:
        """What the unedited model says next after the neighbourhood prompts; None where no shift is wanted."""
        prompts = [prompt for record in records for prompt in record.neighborhood_prompts]
        return next_token_log_probs(self.adapter, prompts) if self.measures.shift and prompts else None

    def after(
        self, records: Sequence[EditRecord], first: int, reference: NextTokenLogProbs | None
    ) -> dict[str, list[Any] | dict[str, Any] | None]:
        """Everything that is wanted of the edited model, as JSON values.

        Args:
            records: Consecutive records of the cell, as the model is asked them after the edit.
            first: Position of the first of them.
            reference: Of the same records.
        """
        shift = None
        if reference is not None:
            prompts = [prompt for record in records for prompt in record.neighborhood_prompts]
            # In-context editing asks the same places with the fact in front of them.
            now = replace(next_token_log_probs(self.adapter, prompts), places=reference.places)
            moved = distribution_shift(reference, now, n_resamples=_ONCE)
            shift = {"kl": list(moved.kl), "flipped": list(moved.flipped)}
        measures = self.measures
        return {
            "generated": generated_rows(self.adapter, records) if measures.generated else None,
            "shift": shift,
            "entropy": text_entropies(self.adapter, records, first) if measures.entropy else None,
            "zsre": zsre_rows(self.adapter, records) if self.zsre else None,
            "probes": probe_rows(self.adapter, records, answer_tokens(measures)) if measures.probes else None,
        }


def answer_tokens(measures: Measures) -> int | None:
    """Tokens of a generated answer to a probe; None where none is wanted."""
    return ANSWER_TOKENS if measures.generated else None


def shift_summary(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """KL(base ‖ edited) and flips of the most likely token over all places of a cell.

    Args:
        parts: ``kl`` (nats) and ``flipped`` of each batch.
    """
    kl = [value for part in parts for value in part["kl"]]
    flipped = [value for part in parts for value in part["flipped"]]
    if not kl:
        return None
    interval = wilson_interval(sum(flipped), len(flipped))
    return {
        "kl_mean": float(np.mean(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "flips": sum(flipped) / len(flipped),
        "flips_interval": None if interval is None else list(interval),
        "n": len(kl),
    }


def mean_entropy(values: Sequence[float]) -> float | None:
    """Mean over texts; None where there is none."""
    return float(np.mean(values)) if values else None
