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
from emendo.ui.jobs import Job

NEW_TOKENS, TOP = 16, 5
MOST_PROMPTS = 50
"""Prompts of one comparison; more are a study, for which there is `emendo diff`."""


def compared(
    session: EditSession, first: State, second: State, prompts: Sequence[str], job: Job, *, most: int = 1
) -> dict[str, Any]:
    """Two states on prompts; no weight is written.

    Args:
        session: Holds the model.
        first: One state.
        second: The other; the same updates as the first: the model is asked once.
        prompts: At least one text.
        job: Told about the progress.
        most: Prompts of which the contributions of single edits are worked out.

    Raises:
        InputError: There is no prompt, or one is too long.
    """
    texts = [text for text in prompts if text.strip()]
    if not 1 <= len(texts) <= MOST_PROMPTS:
        raise InputError(f"found {len(texts)} prompts; expected 1 to {MOST_PROMPTS}, each with some text")
    with session.preview_base() as base:
        if [update.id for update in first.updates] == [update.id for update in second.updates]:
            if first.updates:
                raise InputError(f"{first.name} and {second.name} are the same state; expected two that differ")
            return {"alone": first.name, "prompts": [_alone(base, text) for text in texts]}
        found = difference(base, first, second, texts, new_tokens=NEW_TOKENS, top=TOP, most=most, progress=job)
        return {"alone": None, **document(found, base.identity())}


@torch.no_grad()
def _alone(lm: EditableModel, prompt: str) -> dict[str, Any]:
    """What one state says, where there is no other."""
    ids = lm.encode(prompt)
    if not 0 < len(ids) < lm.max_length:
        raise InputError(f"the prompt has {len(ids)} tokens; expected 1 to {lm.max_length - 1}")
    room = min(NEW_TOKENS, lm.max_length - len(ids))
    shares = lm.unembed(lm.final_hidden(lm.batch([ids]))[0, -1:])[0].float().softmax(dim=-1)
    values, tokens = shares.topk(TOP)
    top = [
        {"token": lm.decode([token]), "probability": value}
        for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
    ]
    return {"prompt": prompt, "first": {"continuation": lm.generate(prompt, room), "top": top}}
