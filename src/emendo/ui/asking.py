"""Asking: two states of a model beside each other on prompts, as the document that `emendo diff` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emendo.attribution import State, difference
from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.models import EditableModel
from emendo.report.diff import document
from emendo.requests import Conversation, Message, Prompt, prompt_text
from emendo.ui.jobs import Job

NEW_TOKENS, TOP = 16, 5
MOST_PROMPTS = 50
"""Prompts of one comparison; more are a study, for which there is `emendo diff`."""


def as_asked(texts: Sequence[str], *, chat: bool) -> list[Prompt]:
    """Texts to be continued; or questions, asked in the model's chat template."""
    return [Conversation((Message("user", text),)) for text in texts] if chat else [*texts]


def compared(
    session: EditSession, first: State, second: State, prompts: Sequence[Prompt], job: Job, *, most: int = 1
) -> dict[str, Any]:
    """Two states on prompts; no weight is written.

    Args:
        session: Holds the model.
        first: One state.
        second: The other; the same updates as the first: the model is asked once.
        prompts: At least one text or conversation.
        job: Told about the progress.
        most: Prompts of which the contributions of single edits are worked out.

    Raises:
        InputError: There is no prompt, or one is too long.
    """
    asked = [prompt for prompt in prompts if prompt_text(prompt).strip()]
    if not 1 <= len(asked) <= MOST_PROMPTS:
        raise InputError(f"found {len(asked)} prompts; expected 1 to {MOST_PROMPTS}, each with some text")
    with session.preview_base() as base:
        if [update.id for update in first.updates] == [update.id for update in second.updates]:
            if first.updates:
                raise InputError(f"{first.name} and {second.name} are the same state; expected two that differ")
            return {"alone": first.name, "prompts": [_alone(base, prompt) for prompt in asked]}
        found = difference(base, first, second, asked, new_tokens=NEW_TOKENS, top=TOP, most=most, progress=job)
        return {"alone": None, **document(found, base.identity())}


@torch.no_grad()
def _alone(lm: EditableModel, prompt: Prompt) -> dict[str, Any]:
    """What one state says, where there is no other."""
    ids = lm.encode_prompt(prompt)
    if not 0 < len(ids) < lm.max_length:
        raise InputError(f"the prompt has {len(ids)} tokens; expected 1 to {lm.max_length - 1}")
    room = min(NEW_TOKENS, lm.max_length - len(ids))
    shares = lm.unembed(lm.final_hidden(lm.batch([ids]))[0, -1:])[0].float().softmax(dim=-1)
    values, tokens = shares.topk(TOP)
    top = [
        {"token": lm.decode([token]), "probability": value}
        for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
    ]
    text, in_chat = prompt_text(prompt), not isinstance(prompt, str)
    return {"prompt": text, "chat": in_chat, "first": {"continuation": lm.generate(prompt, room), "top": top}}
