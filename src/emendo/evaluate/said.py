"""What is said: whether a greedy continuation begins with the new target as whole words.

Teacher forcing cannot see this: with every token of " Astana" the most likely one, the next token can still make it
"Astanaborra".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.evaluate.generated import generate_texts
from emendo.evaluate.matching import normalised_words
from emendo.models import ModelAdapter
from emendo.models.alignment import encode_target
from emendo.progress import Progress
from emendo.requests import EditRecord, keeps_joint

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
        edited: To the edited prompt.
        paraphrase: To its other wordings.
    """

    edited: SaidPrompt
    paraphrase: tuple[SaidPrompt, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def said_records(
    adapter: ModelAdapter, records: Sequence[EditRecord], *, progress: Progress | None = None
) -> tuple[SaidRecord, ...]:
    """What the model says to the prompt and the paraphrases of every record.

    Args:
        adapter: The model as it stands.
        records: The facts; may be none.
        progress: Counts distinct prompts.

    Raises:
        InputError: A prompt or a target has no token, or a prompt is longer than the model's positions.
    """
    asked = [(record.request.text, *record.paraphrase_prompts) for record in records]
    requests = [record.request for record in records]
    targets = [encode_target(adapter, one.text, one.target, one.join)[1] for one in requests]
    longest = max(map(len, targets), default=0)
    prompts = [prompt for own in asked for prompt in own]
    found = generate_texts(adapter, prompts, chat=False, new_tokens=longest + MORE_TOKENS, progress=progress)
    texts = dict(zip(prompts, (one.text for one in found), strict=True))
    judged = []
    for request, own in zip(requests, asked, strict=True):
        edited, *paraphrase = (
            SaidPrompt(
                prompt,
                texts[prompt],
                begins_with(texts[prompt], request.target)
                and keeps_joint(prompt, texts[prompt], request.target, request.join),
            )
            for prompt in own
        )
        judged.append(SaidRecord(edited, tuple(paraphrase)))
    return tuple(judged)


def begins_with(text: str, target: str) -> bool:
    """Whether a continuation begins with the words of a target; case and punctuation do not matter.

    Args:
        text: What the model said.
        target: What it should say.
    """
    wanted = normalised_words(target)
    return normalised_words(text)[: len(wanted)] == wanted
