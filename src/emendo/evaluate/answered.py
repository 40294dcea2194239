"""Which facts a model answers: an edit of a fact that it never knew shows little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from emendo.arguments import Count, checked
from emendo.errors import InputError
from emendo.evaluate.scoring import score_targets
from emendo.models import EditableModel
from emendo.progress import Watched
from emendo.requests import EditRecord

Level: TypeAlias = Literal["argmax", "probability"]

LEVELS: tuple[Level, ...] = get_args(Level)


@checked
def answered(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    level: Level = "argmax",
    token_budget: Count | None = None,
    progress: Watched = None,
) -> tuple[EditRecord, ...]:
    """The records whose true target the model gives after their plain prompt.

    ``"argmax"``: every token of `target_true` is the most likely one, given those before it. ``"probability"``:
    `target_true` is more likely than the new target, both by the mean log-probability of their tokens; a tie is not
    answered. Paraphrases and neighbors are not asked.

    Args:
        lm: The model, unedited for the usual meaning.
        records: Each with a `target_true`.
        level: How strict.
        token_budget: As in `score_targets`.
        progress: Counts distinct (prompt, target) pairs.

    Returns:
        In their order; empty where the model answers none.

    Raises:
        InputError: The level is unknown, or a record has no `target_true`.

    Source: the probability level is the comparison of ES before the edit, ROME (arXiv 2202.05262), section 3.4.
    """
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}; expected one of {', '.join(LEVELS)} (level=)")
    lacking = [record.request.label for record in records if record.target_true is None]
    if lacking:
        raise InputError(
            f"{len(lacking)} of {len(records)} records have no target_true, so that nothing says what the model should "
            f"answer; the first is {lacking[0]!r}. Leave such records out, or give them one"
        )
    true = [record.request.pair(record.request.text, record.target_true or "") for record in records]
    new = (
        [record.request.pair(record.request.text, record.request.target) for record in records]
        if level == "probability"
        else []
    )
    scores = score_targets(lm, true + new, token_budget=token_budget, progress=progress) if records else []
    if level == "argmax":
        return tuple(record for record, score in zip(records, scores, strict=True) if score.argmax)
    half = len(records)
    return tuple(record for record, t, n in zip(records, scores[:half], scores[half:], strict=True) if t.nll < n.nll)
