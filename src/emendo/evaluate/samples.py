"""Prompts that are continued in words, so that people see what a model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emendo.arguments import checked
from emendo.requests import EditRecord


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt that is continued in words.

    Attributes:
        position: Of its record.
        kind: ``"edited"``, ``"paraphrase"`` or ``"neighbor"``.
        prompt: The text.
        wanted: What it should say after the edit; empty where unknown.
    """

    position: int
    kind: str
    prompt: str
    wanted: str


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
        target = record.request.target
        prompts.append(SampledPrompt(position, "edited", record.request.text, target))
        prompts += [SampledPrompt(position, "paraphrase", text, target) for text in record.paraphrase_prompts[:1]]
        prompts += [
            SampledPrompt(position, "neighbor", text, record.target_true or "")
            for text in record.neighborhood_prompts[:1]
        ]
    return prompts
