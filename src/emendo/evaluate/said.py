"""What is said: whether a greedy continuation begins with the new target as whole words.

Teacher forcing cannot see this: with every token of " Astana" the most likely one, the next token can still make it
"Astanaborra".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import checked
from emendo.evaluate.matching import normalised_words
from emendo.evaluate.table import Means, mean_over_records
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.models.generation import continue_rows
from emendo.progress import Watched, watching
from emendo.requests import EditRecord, EditRequest, Prompt, keeps_joint
from emendo.solve.numerics import pinned

MORE_TOKENS = 2
"""Generated beyond the target's own tokens, so that "Romeo" is not taken for "Rome"."""


@dataclass(frozen=True)
class SaidPrompt:
    """What a model says after one prompt that should give the new target.

    Attributes:
        prompt: The prompt.
        text: Greedy continuation, as many tokens as the longest target has and `MORE_TOKENS`.
        hit: It begins with the target as whole words, joined to the prompt as the target is.
    """

    prompt: str
    text: str
    hit: bool


@dataclass(frozen=True)
class SaidRecord:
    """What a model says to one fact.

    Attributes:
        edited: To the edited prompt, in chat where the request is asked in chat.
        paraphrase: To its other wordings.
        chat: To the edited prompt as a user's message, where the answer begins with that prompt; the same as `edited`
            of a request that is asked in chat; None for a model without a chat template.
    """

    edited: SaidPrompt
    paraphrase: tuple[SaidPrompt, ...] = ()
    chat: SaidPrompt | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "paraphrase": [asdict(prompt) for prompt in self.paraphrase]}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SaidRecord:
        """What `to_dict` gave."""
        chat = row["chat"]
        return cls(
            SaidPrompt(**row["edited"]),
            tuple(SaidPrompt(**prompt) for prompt in row["paraphrase"]),
            None if chat is None else SaidPrompt(**chat),
        )


SAID_METRICS = ("said", "said_paraphrase", "said_chat")
"""Shares of `said_means`."""


def said_means(records: Sequence[SaidRecord]) -> Means:
    """Percent of records whose prompt, paraphrases (mean of a record's) and chat are continued with the new target.

    Args:
        records: At least one.
    """
    rows = [
        {
            "said": float(record.edited.hit),
            "said_paraphrase": sum(p.hit for p in record.paraphrase) / len(record.paraphrase)
            if record.paraphrase
            else None,
            "said_chat": None if record.chat is None else float(record.chat.hit),
        }
        for record in records
    ]
    return mean_over_records(rows, SAID_METRICS, scale=100)


@checked
@pinned()
def said_records(
    lm: EditableModel, records: Sequence[EditRecord], *, progress: Watched = None
) -> tuple[SaidRecord, ...]:
    """What the model says to the prompt and the paraphrases of every record, and to the prompt in chat.

    In chat a text is the whole message of one user, and the answer is begun with the same text, so that the new target
    has to follow there as well. A request that is asked in chat is answered there from the beginning.

    Args:
        lm: The model as it stands.
        records: The facts; may be none.
        progress: Counts distinct prompts.

    Raises:
        InputError: A prompt or a target has no token, or a prompt is longer than the model's positions.
    """
    asked = [
        record.request.asking(prompt)
        for record in records
        for prompt in (record.request.text, *record.paraphrase_prompts)
    ]
    plain = {prompt: _encoded(lm, prompt) for prompt in asked}
    chat: dict[str, list[int]] = {}
    if lm.has_chat_template:
        for prompt in (record.request.text for record in records if record.request.chat is None):
            chat[prompt] = [*lm.encode_chat(prompt), *lm.encode_bare(_trimmed(prompt))]
    rows = [*plain.values(), *chat.values()]
    requests = [record.request for record in records]
    targets = [encode_target(lm, one.asked, one.target, one.join)[1] for one in requests]
    longest = max(map(len, targets), default=0) + MORE_TOKENS
    progress = watching(progress)
    progress.start("what is said", len(rows))
    found = continue_rows(lm, rows, [longest] * len(rows), on_rows=progress.advance) if rows else []
    progress.finish()
    texts = [lm.decode_after(row, one.ids) for row, one in zip(rows, found, strict=True)]
    said = dict(zip(plain, texts[: len(plain)], strict=True))
    said_in_chat = dict(zip(chat, texts[len(plain) :], strict=True))

    def judged(request: EditRequest, prompt: str, text: str, *, continued: bool = True) -> SaidPrompt:
        joined = not continued or keeps_joint(prompt, text, request.target, request.join)
        return SaidPrompt(prompt, text, joined and begins_with(text, request.target))

    def answered(request: EditRequest, prompt: str) -> SaidPrompt:
        one = request.asking(prompt)
        return judged(request, prompt, said[one], continued=isinstance(one, str))

    def in_chat(request: EditRequest, edited: SaidPrompt) -> SaidPrompt | None:
        if request.chat is not None:
            return edited
        return judged(request, request.text, said_in_chat[request.text]) if chat else None

    found_records = []
    for record in records:
        edited = answered(record.request, record.request.text)
        paraphrase = tuple(answered(record.request, prompt) for prompt in record.paraphrase_prompts)
        found_records.append(SaidRecord(edited, paraphrase, in_chat(record.request, edited)))
    return tuple(found_records)


def _encoded(lm: EditableModel, prompt: Prompt) -> list[int]:
    return lm.encode_prompt(_trimmed(prompt) if isinstance(prompt, str) else prompt)


def _trimmed(prompt: str) -> str:
    """A space at the end of a prompt belongs to what follows, as in `generate_texts`."""
    return prompt.rstrip(" ") or prompt


@checked
def begins_with(text: str, target: str) -> bool:
    """Whether a continuation begins with the words of a target; case and punctuation do not matter.

    Args:
        text: What the model said.
        target: What it should say.
    """
    wanted = normalised_words(target)
    if not wanted:  # no letter and no digit
        return text.strip().startswith(target.strip())
    return normalised_words(text)[: len(wanted)] == wanted
