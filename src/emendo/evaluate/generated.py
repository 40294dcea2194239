"""The generated level: what the model says when it is asked and nobody holds its hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import Confidence, Count, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.matching import contained_match, exact_match
from emendo.evaluate.table import Means, mean_over_records
from emendo.models import EditableModel
from emendo.models.generation import continue_rows
from emendo.progress import Watched, watching
from emendo.requests import EditRecord, Join, Prompt, keeps_joint, prompt_text
from emendo.solve.numerics import pinned

GROUPS = ("efficacy", "paraphrase", "neighborhood")

GENERATED_METRICS = tuple(f"{group}_{match}" for group in GROUPS for match in ("exact", "contained"))
"""Every measure of `GenerationScores`."""


@dataclass(frozen=True)
class GeneratedText:
    """What a model says after one prompt.

    Attributes:
        prompt: The prompt, without the chat template.
        text: The continuation, as generated.
        stopped: The model ended it; otherwise it was cut at the limit.
    """

    prompt: str
    text: str
    stopped: bool


@dataclass(frozen=True)
class GeneratedAnswer:
    """A generated text judged by an expected answer.

    Attributes:
        prompt: The prompt.
        expected: The answer that would be right; any of them where there are several.
        text: The continuation, as generated.
        stopped: The model ended it; otherwise it was cut at the limit.
        exact: `exact_match` with one of the expected, joined to the prompt as it is spelled.
        contained: `contained_match` with one of the expected.
    """

    prompt: str
    expected: tuple[str, ...]
    text: str
    stopped: bool
    exact: bool
    contained: bool

    @classmethod
    def judged(cls, generated: GeneratedText, expected: Sequence[str], join: Join | None = None) -> GeneratedAnswer:
        """Compare a generated text with the answers that would be right.

        Args:
            generated: The text.
            expected: The answers.
            join: How an answer joins the prompt that it continues; None where it answers a message.
        """
        prompt, text = generated.prompt, generated.text
        joined = [answer for answer in expected if join is None or keeps_joint(prompt, text, answer, join)]
        return cls(
            prompt=prompt,
            expected=tuple(expected),
            text=text,
            stopped=generated.stopped,
            exact=any(exact_match(text, answer) for answer in joined),
            contained=any(contained_match(text, answer) for answer in expected),
        )


@dataclass(frozen=True)
class GeneratedRecord:
    """One record's answers.

    Attributes:
        id: The request's id, or its subject.
        efficacy: The edited prompt itself, judged by the new target (one entry).
        paraphrase: Other wordings, judged by the new target.
        neighborhood: Prompts about other subjects, judged by the true target; none where the record names none.
    """

    id: str
    efficacy: tuple[GeneratedAnswer, ...]
    paraphrase: tuple[GeneratedAnswer, ...]
    neighborhood: tuple[GeneratedAnswer, ...]

    def measures(self) -> dict[str, float | None]:
        """Shares of the record's prompts in [0, 1], by name; None for a group without prompts."""
        found: dict[str, float | None] = {}
        for group in GROUPS:
            answers = getattr(self, group)
            for match in ("exact", "contained"):
                hits = [getattr(answer, match) for answer in answers]
                found[f"{group}_{match}"] = sum(hits) / len(hits) if hits else None
        return found


@dataclass(frozen=True)
class GenerationScores:
    """Generated answers of all records, and their means in percent.

    Attributes:
        chat: Asked through the model's chat template, rather than by the raw prompt.
        new_tokens: Most tokens of a continuation.
        records: Every raw generation.
        means: Mean over the prompts of a record, then over records, with intervals.
    """

    chat: bool
    new_tokens: int
    records: tuple[GeneratedRecord, ...]
    means: Means

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "chat": self.chat,
            "new_tokens": self.new_tokens,
            "scores": self.means.to_dict(),
            "records": [asdict(record) for record in self.records],
        }


@checked
@pinned()
def generate_texts(
    lm: EditableModel,
    prompts: Sequence[Prompt],
    *,
    chat: bool,
    new_tokens: Count = 32,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> list[GeneratedText]:
    """Greedy continuations that end where the model ends them; equal prompts are continued once.

    Args:
        lm: The model.
        prompts: Texts to continue, or to send as a user's message; a conversation is answered in chat either way.
        chat: Through the model's chat template: the prompt is the whole message of one user, and the template's own
            defaults (such as a system message) stand.
        new_tokens: Most tokens of a continuation.
        token_budget: Most tokens of one batch, as in `continue_rows`. Changes speed and memory.
        progress: Counts distinct prompts.

    Raises:
        InputError: `chat` without a chat template, `new_tokens` below 1, or a prompt longer than the model's positions.
    """
    distinct = list(dict.fromkeys(prompts))
    if not distinct:
        return []
    # A space at the end of a prompt belongs to what follows, as in `continuation`.
    rows = [_encoded(lm, prompt, chat) for prompt in distinct]
    progress = watching(progress)
    progress.start("generating", len(distinct))
    found = continue_rows(lm, rows, [new_tokens] * len(rows), token_budget=token_budget, on_rows=progress.advance)
    progress.finish()
    texts = {
        prompt: GeneratedText(prompt_text(prompt), lm.decode_after(row, continuation.ids), continuation.stopped)
        for prompt, row, continuation in zip(distinct, rows, found, strict=True)
    }
    return [texts[prompt] for prompt in prompts]


def _encoded(lm: EditableModel, prompt: Prompt, chat: bool) -> list[int]:
    if isinstance(prompt, str):
        return lm.encode_chat(prompt) if chat else lm.encode(prompt.rstrip(" ") or prompt)
    return lm.encode_prompt(prompt)


@checked
@pinned()
def generation_scores(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    chat: bool,
    new_tokens: Count = 32,
    token_budget: Count | None = None,
    progress: Watched = None,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> GenerationScores:
    """Ask the edited prompt, its paraphrases and its neighbors, and judge what the model says.

        <group>_exact      mean over records of the mean over prompts of exact_match(text, answer)
        <group>_contained  the same of contained_match(text, answer)

    The answer is the new target for efficacy and paraphrase, the true target for neighborhood.

    Args:
        lm: The model.
        records: At least one.
        chat: Ask through the model's chat template, as in `generate_texts`; what is asked in chat then has its own
            turns around it. Otherwise every prompt is a text to be continued.
        new_tokens: Most tokens of a continuation.
        token_budget: Most tokens of one batch. Changes speed and memory.
        progress: Counts distinct prompts.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: There is no record, `chat` without a chat template, or a setting is out of range.

    Source: Yang et al. 2025 (The Mirage of Model Editing, arXiv 2502.11177): free generation with a natural stop.
    """
    if not records:
        raise InputError("there is nothing to ask: the list of records is empty")
    asked = [_questions(record) for record in records]
    prompts = [
        record.request.asking(prompt) if chat else prompt
        for record, groups in zip(records, asked, strict=True)
        for questions in groups
        for prompt, _ in questions
    ]
    texts = iter(
        generate_texts(lm, prompts, chat=chat, new_tokens=new_tokens, token_budget=token_budget, progress=progress)
    )
    judged = []
    for record, groups in zip(records, asked, strict=True):
        join = None if chat else record.request.join
        answers = [
            tuple(GeneratedAnswer.judged(next(texts), [answer], join) for _, answer in group) for group in groups
        ]
        judged.append(GeneratedRecord(record.request.label, *answers))
    means = mean_over_records(
        [record.measures() for record in judged],
        GENERATED_METRICS,
        scale=100,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )
    return GenerationScores(chat, new_tokens, tuple(judged), means)


def _questions(record: EditRecord) -> tuple[list[tuple[str, str]], ...]:
    """(prompt, expected answer) of a record, in the order of `GROUPS`."""
    new, true = record.request.target, record.target_true
    return (
        [(record.request.text, new)],
        [(prompt, new) for prompt in record.paraphrase_prompts],
        [] if true is None else [(prompt, true) for prompt in record.neighborhood_prompts],
    )
