"""Text that the model writes after given openings: many languages and forms of which its own samples have little.

An edit is gentle where the second moment has keys. Text that a model samples from nothing is mostly plain prose in the
language that it knows best, so an edit of many facts moves other languages, chat and code most. The packaged openings
stand for them; the model goes on from each in its own way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from emendo.arguments import Seed, check_fields
from emendo.errors import CorpusError
from emendo.models import EditableModel
from emendo.statistics.sample import SampledText, continue_sequences

OPENINGS = "kinds"
"""The name of this source in settings and on the command line."""


@dataclass(frozen=True)
class OpeningsCorpus(SampledText):
    """Text that the model writes after the packaged openings, each in its turn.

    A sequence begins with an opening, cut to its length, which counts as well: the model's own text in a language
    that it hardly knows soon leaves it.

    Args:
        seed: Seed of the sample.
    """

    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, CorpusError)

    def describe(self) -> dict[str, Any]:
        """The seed and a digest of the openings; the text also depends on the model, recorded beside them."""
        return {"kind": "openings", "seed": self.seed, "sha256": hashlib.sha256(_packaged().encode()).hexdigest()}

    def sampled(
        self,
        lm: EditableModel,
        rows: range,
        length: int,
        restart: tuple[int, int] | None,
        on_step: Callable[[int], None],
    ) -> list[list[int]]:
        """See `SampledText.sampled`."""
        openings = [_encoded(lm, json.loads(line))[:length] for line in _packaged().splitlines()]
        given = [openings[row % len(openings)] for row in rows]
        return continue_sequences(lm, rows, given, length=length, seed=self.seed, restart=restart, on_step=on_step)


def _packaged() -> str:
    """The openings that come with Emendo, one JSON object a line: a topic, and a text or messages."""
    return (resources.files("emendo") / "data" / "openings.jsonl").read_text(encoding="utf-8")


def _encoded(lm: EditableModel, opening: dict[str, Any]) -> list[int]:
    if "text" in opening:
        return lm.encode(opening["text"])
    return lm.encode_conversation([(message["role"], message["content"]) for message in opening["messages"]])
