"""Scores of targets and of whole records on a model, edited or not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.arguments import Confidence, Count, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.aggregate import EditScores
from emendo.evaluate.metrics import PromptScore, RecordScore, TargetScore
from emendo.evaluate.tokens import TokenScores, score_tokens, scores_by_pair
from emendo.models import EditableModel
from emendo.progress import Watched, chosen_progress
from emendo.requests import EditRecord, Pair
from emendo.solve.numerics import pinned


@checked
@pinned()
def score_targets(
    lm: EditableModel,
    pairs: Sequence[Pair],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> list[TargetScore]:
    """Score how likely the model finds each target after its prompt.

    Identical pairs are scored once, and what texts have in common at their beginning is computed once.

    Args:
        lm: The model.
        pairs: (prompt, target) texts, or (prompt, target, join). A target is tokenised as the continuation of its
            prompt, joined as `EditRequest.join` says.
        token_budget: Most distinct tokens run at once, as in `score_tokens`. Changes speed and memory, not scores.
        progress: Counts distinct pairs.

    Returns:
        One score per pair, in their order.

    Raises:
        InputError: A target or a prompt has no token, or together they exceed the model's length.
        NumericalError: The model's logits are not finite.
        SelfCheckError: A tree disagrees with the model's own forward pass.
    """
    found = score_tokens(lm, pairs, token_budget=token_budget, progress=progress)
    return [_target_score(score) for score in found]


def target_scores_by_pair(
    lm: EditableModel,
    pairs: Iterable[Pair],
    *,
    token_budget: int | None = None,
    progress: Watched = None,
) -> dict[Pair, TargetScore]:
    """The score of each distinct pair; arguments and errors as of `score_targets`."""
    found = scores_by_pair(lm, pairs, token_budget=token_budget, progress=progress)
    return {pair: _target_score(score) for pair, score in found.items()}


def _target_score(score: TokenScores) -> TargetScore:
    return TargetScore(nll=score.nll, argmax=all(score.hits), n_tokens=len(score.targets))


@dataclass(frozen=True)
class RecordScores:
    """Scores of every record and prompt, and their aggregate.

    Attributes:
        records: One entry per record, in their order.
        scores: The metrics over all records.
    """

    records: tuple[RecordScore, ...]
    scores: EditScores

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "scores": self.scores.to_dict(),
            "records": [record.to_dict() for record in self.records],
        }


@checked
@pinned()
def score_records(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> tuple[RecordScore, ...]:
    """Score records on the model as it stands, edited or not.

    Every prompt is scored with the new target and, where the record names one, the true target; all
    of them in one call.

    Args:
        lm: The model.
        records: At least one.
        token_budget: Most distinct tokens run at once, as in `score_tokens`.
        progress: Counts distinct (prompt, target) pairs.

    Raises:
        InputError: There is no record, or a prompt cannot be scored.
        NumericalError: The model's logits are not finite.
    """
    if not records:
        raise InputError("there is nothing to evaluate: the list of records is empty")
    pairs = [
        record.request.pair(prompt, target)
        for record in records
        for prompt in _prompts(record)
        for target in _targets(record)
    ]
    by_pair = target_scores_by_pair(lm, pairs, token_budget=token_budget, progress=progress)
    return tuple(_record_score(record, by_pair) for record in records)


@checked
def evaluate_records(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> RecordScores:
    """The scores of `score_records` and the metrics over them.

    A record without `target_true` has no comparison: it counts in the argmax
    and probability metrics of the new target, and `scores.notes` says so.

    Args:
        lm: The model.
        records: At least one.
        token_budget: Most distinct tokens run at once, as in `score_tokens`.
        progress: Counts distinct (prompt, target) pairs.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: There is no record, or a prompt cannot be scored.
        NumericalError: The model's logits are not finite.
    """
    scored = score_records(lm, records, token_budget=token_budget, progress=chosen_progress(progress))
    scores = EditScores.from_records(scored, confidence=confidence, n_resamples=n_resamples, seed=seed)
    return RecordScores(scored, scores)


def _prompts(record: EditRecord) -> tuple[str, ...]:
    return (record.request.text, *record.paraphrase_prompts, *record.neighborhood_prompts)


def _targets(record: EditRecord) -> tuple[str, ...]:
    if record.target_true is None:
        return (record.request.target,)
    return (record.request.target, record.target_true)


def _record_score(record: EditRecord, by_pair: dict[Pair, TargetScore]) -> RecordScore:
    true = record.target_true

    def scored(prompts: Sequence[str]) -> tuple[PromptScore, ...]:
        return tuple(
            PromptScore(
                prompt,
                by_pair[record.request.pair(prompt, record.request.target)],
                None if true is None else by_pair[record.request.pair(prompt, true)],
            )
            for prompt in prompts
        )

    return RecordScore(
        id=record.request.label,
        target=record.request.target,
        target_true=true,
        efficacy=scored([record.request.text]),
        paraphrase=scored(record.paraphrase_prompts),
        neighborhood=scored(record.neighborhood_prompts),
    )
