"""A measure: how long the model's greedy answers are, before and after the edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.evaluate import Snapshot
from emendo.evaluate.measure import Column, Given, Measure, Panel

TOKENS = 8
"""New tokens of an answer."""


def _ask(snapshot: Snapshot, given: Given) -> list[int]:
    """Characters of the answer to every edited prompt."""
    prompts = [record.request.text for record in snapshot.records]
    return [len(text) for text in snapshot.continuations(prompts, TOKENS)]


def _summarise(before: Any, parts: Sequence[Any]) -> dict[str, Any] | None:
    """Means over records."""
    after = [length for part in parts for length in part]
    return {"before": sum(before) / len(before), "after": sum(after) / len(after)} if before and after else None


ANSWER_LENGTH = Measure(
    name="answer-length",
    meaning="characters of greedy answers",
    stage="length of answers",
    ask=_ask,
    summarise=_summarise,
    rows=True,
    title="Length of answers",
    share="characters",
    panels=(
        Panel(
            "answer-length",
            "Length of answers",
            (
                Column(
                    "answer-length",
                    "length",
                    "characters",
                    "answer-length.after",
                    ".1f",
                    "characters of greedy answers",
                ),
            ),
        ),
    ),
)
