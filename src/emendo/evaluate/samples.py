"""Prompts that are continued in words, so that people see what a model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emendo.arguments import checked
from emendo.requests import EditRecord, Prompt


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt that is continued in words.

    Attributes:
        position: Of its record.
        kind: ``"edited"``, ``"paraphrase"`` or ``"neighbor"``.
        prompt: The text.
        wanted: What it should say after the edit; empty where unknown.
        asked: What the model is asked: the text, or a conversation with it.
    """

    position: int
    kind: str
    prompt: str
    wanted: str
    asked: Prompt


@checked
def sampled_prompts(records: Sequence[EditRecord], most: int, *, first: int = 0) -> list[SampledPrompt]:
    """Of each of the first `most` records the prompt, a paraphrase and a neighbor.

    Args:
        records: Consecutive records.
        most: Records that are continued, counted from position 0.
        first: Position of the first of these records.
    """
    prompts = []
    for position, record in enumerate(records[: max(0, most - first)], start=first):
        target, true = record.request.target, record.target_true or ""
        chosen = [("edited", record.request.text, target)]
        chosen += [("paraphrase", text, target) for text in record.paraphrase_prompts[:1]]
        chosen += [("neighbor", text, true) for text in record.neighborhood_prompts[:1]]
        prompts += [
            SampledPrompt(position, kind, text, wanted, record.request.asking(text)) for kind, text, wanted in chosen
        ]
    return prompts
