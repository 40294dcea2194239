"""One look at a model: everything that the declared checks compare between two states of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emendo.evaluate import (
    NextTokenLogProbs,
    RecordScores,
    TextTokens,
    evaluate_records,
    generate_texts,
    next_token_log_probs,
    text_tokens,
)
from emendo.evaluate.held_out import packaged_perplexity
from emendo.evaluate.matching import normalised_words
from emendo.gate.canaries import CanarySet, CanaryText
from emendo.gate.config import Checks
from emendo.models import ModelAdapter
from emendo.models.alignment import encode_target
from emendo.progress import Progress
from emendo.requests import EditRecord, keeps_joint

_MORE_TOKENS = 2
"""Generated beyond the target's own, so that "Romeo" is not taken for "Rome"."""


@dataclass(frozen=True)
class Look:
    """A state of the model; parts that no declared check needs are None.

    Attributes:
        scores: Scores of every record and prompt.
        generated: For each record, whether the greedy continuation of its prompt and of each paraphrase begins with
            the new target; the edited prompt first.
        neighborhood: What comes next after every neighbourhood prompt, in the order of the records.
        canaries: What comes next after every canary prompt.
        texts: What is predicted at every token of the canary texts.
        perplexity: Of the packaged text.
        tokens: Predicted tokens behind it.
    """

    scores: RecordScores | None = None
    generated: tuple[tuple[bool, ...], ...] | None = None
    neighborhood: NextTokenLogProbs | None = None
    canaries: NextTokenLogProbs | None = None
    texts: TextTokens | None = None
    perplexity: float | None = None
    tokens: int = 0


def look(
    adapter: ModelAdapter,
    records: Sequence[EditRecord],
    canaries: CanarySet,
    checks: Checks,
    progress: Progress,
) -> Look:
    """Measure the model as it stands.

    Args:
        adapter: The model.
        records: The facts with their probes, as the model is asked them in this state; may be none.
        canaries: Canary prompts and texts; may be none.
        checks: What will be checked.
        progress: Told about the stages.

    Raises:
        InputError: A prompt cannot be scored.
        NumericalError: The model's logits are not finite.
    """
    neighbors = [prompt for record in records for prompt in record.neighborhood_prompts]
    scored = bool(records) and any((checks.efficacy, checks.paraphrase, checks.neighborhood_lost))
    generates = any(
        check is not None and check.success == "generated" for check in (checks.efficacy, checks.paraphrase)
    )
    text = packaged_perplexity(adapter, progress=progress) if checks.perplexity_ratio else None
    return Look(
        scores=evaluate_records(adapter, records, progress=progress) if scored else None,
        generated=_generated(adapter, records, progress) if generates else None,
        neighborhood=_next_tokens(adapter, neighbors if checks.neighborhood_flips else [], progress),
        canaries=_next_tokens(adapter, canaries.prompts if checks.ask_prompts else [], progress),
        texts=_texts(adapter, canaries.texts if checks.read_texts else (), progress),
        perplexity=None if text is None else text.value,
        tokens=0 if text is None else text.predicted_tokens,
    )


def _next_tokens(adapter: ModelAdapter, prompts: Sequence[str], progress: Progress) -> NextTokenLogProbs | None:
    return next_token_log_probs(adapter, prompts, progress=progress) if prompts else None


def _texts(adapter: ModelAdapter, texts: Sequence[CanaryText], progress: Progress) -> TextTokens | None:
    return text_tokens(adapter, [text.encode(adapter) for text in texts], progress=progress) if texts else None


def _generated(
    adapter: ModelAdapter, records: Sequence[EditRecord], progress: Progress
) -> tuple[tuple[bool, ...], ...]:
    """Whether each record's prompt and paraphrases are continued with its target."""
    asked = [(record.request.text, *record.paraphrase_prompts) for record in records]
    requests = [record.request for record in records]
    targets = [encode_target(adapter, asked.text, asked.target, asked.join)[1] for asked in requests]
    longest = max(map(len, targets), default=0)
    prompts = [prompt for prompts in asked for prompt in prompts]
    texts = generate_texts(adapter, prompts, chat=False, new_tokens=longest + _MORE_TOKENS, progress=progress)
    said = dict(zip(prompts, (found.text for found in texts), strict=True))
    return tuple(
        tuple(
            begins_with(said[prompt], request.target)
            and keeps_joint(prompt, said[prompt], request.target, request.join)
            for prompt in prompts
        )
        for request, prompts in zip(requests, asked, strict=True)
    )


def begins_with(text: str, target: str) -> bool:
    """Whether a continuation begins with the words of a target; case and punctuation do not matter.

    Args:
        text: What the model said.
        target: What it should say.
    """
    wanted = normalised_words(target)
    return normalised_words(text)[: len(wanted)] == wanted
