"""Scores of records as plain rows of numbers, from which every metric can be made again, bit for bit.

A row has three groups of prompts, ``edited``, ``paraphrase`` and ``neighborhood``; a group has one list a figure and in
it one number a prompt: the mean nll per token of the new and of the true target (nats), whether every token of it is
the argmax, and its number of tokens. Lists of the true target are null where the record names none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from emendo.evaluate.aggregate import EditScores
from emendo.evaluate.metrics import PromptScore, RecordScore, TargetScore
from emendo.requests import EditRecord

Row: TypeAlias = dict[str, dict[str, list[Any] | None]]

_GROUPS = {"edited": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighborhood"}


def score_rows(scored: Sequence[RecordScore]) -> list[Row]:
    """One row for each scored record."""
    return [{name: _columns(getattr(record, attribute)) for name, attribute in _GROUPS.items()} for record in scored]


def aggregate(records: Sequence[EditRecord], rows: Sequence[Row]) -> EditScores:
    """The metrics over all records, with intervals.

    Args:
        records: Whose rows they are.
        rows: One for each record.
    """
    return EditScores.from_records(record_scores(records, rows))


def record_scores(records: Sequence[EditRecord], rows: Sequence[Row]) -> list[RecordScore]:
    """Rows as what they were made from; prompts have no texts.

    Args:
        records: Whose rows they are.
        rows: One for each record.
    """
    scored = []
    for record, row in zip(records, rows, strict=True):
        groups = {attribute: _prompts(row[name]) for name, attribute in _GROUPS.items()}
        scored.append(RecordScore(record.request.label, record.request.target, record.target_true, **groups))
    return scored


def holds(row: Row) -> bool:
    """Whether an edit holds: every token of its new target is the argmax after the edited prompt."""
    flags = row["edited"]["argmax_new"]
    assert flags is not None
    return bool(flags[0])


def _columns(prompts: Sequence[PromptScore]) -> dict[str, list[Any] | None]:
    new, true = [prompt.target for prompt in prompts], [prompt.target_true for prompt in prompts]
    named = [target for target in true if target is not None]
    whole = len(named) == len(prompts)
    return {
        "nll_new": [target.nll for target in new],
        "nll_true": [target.nll for target in named] if whole else None,
        "argmax_new": [target.argmax for target in new],
        "argmax_true": [target.argmax for target in named] if whole else None,
        "tokens_new": [target.n_tokens for target in new],
        "tokens_true": [target.n_tokens for target in named] if whole else None,
    }


def _prompts(columns: Mapping[str, list[Any] | None]) -> tuple[PromptScore, ...]:
    new = _targets(columns, "new")
    true = [None] * len(new) if columns["nll_true"] is None else _targets(columns, "true")
    # The text is in the data; no metric reads it.
    return tuple(PromptScore("", target, other) for target, other in zip(new, true, strict=True))


def _targets(columns: Mapping[str, list[Any] | None], which: str) -> list[TargetScore]:
    nll, argmax, tokens = (columns[f"{name}_{which}"] or [] for name in ("nll", "argmax", "tokens"))
    return [TargetScore(*figures) for figures in zip(nll, argmax, tokens, strict=True)]
