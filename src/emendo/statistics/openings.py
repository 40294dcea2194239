"""Text that the model writes after given openings: many languages and forms of which its own samples have little.

An edit is gentle where the second moment has keys. Text that a model samples from nothing is mostly plain prose in the
language that it knows best, so an edit of many facts moves other languages, chat and code most. The packaged openings
stand for them; the model goes on from each in its own way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from emendo.arguments import Seed, check_fields
from emendo.errors import CorpusError
from emendo.models import EditableModel
from emendo.progress import Progress, Silent
from emendo.statistics.packing import bos_ids
from emendo.statistics.sample import continue_sequences, sample_groups, written_tokens

OPENINGS = "kinds"
"""The name of this source in settings and on the command line."""


@dataclass(frozen=True)
class OpeningsCorpus:
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

    def sampled_tokens(self, *, length: int, count: int, start: int = 0) -> int:
        """See `Corpus.sampled_tokens`."""
        return written_tokens(length, count, start)

    def sequences(
        self,
        lm: EditableModel,
        *,
        length: int,
        count: int,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[list[int]]:
        """See `Corpus.sequences`."""
        progress, prefix, end = progress or Silent(), bos_ids(lm), lm.tokenizer.eos_token_id
        openings = [_encoded(lm, json.loads(line))[:length] for line in _packaged().splitlines()]
        for rows in sample_groups(start, count):
            sampled = continue_sequences(
                lm,
                rows,
                [openings[row % len(openings)] for row in rows],
                length=length,
                seed=self.seed,
                restart=(end, prefix[-1]) if prefix and end is not None else None,
                on_step=progress.advance,
            )
            yield from sampled[max(0, start - rows.start) :]


def _packaged() -> str:
    """The openings that come with Emendo, one JSON object a line: a topic, and a text or messages."""
    return (resources.files("emendo") / "data" / "openings.jsonl").read_text(encoding="utf-8")


def _encoded(lm: EditableModel, opening: dict[str, Any]) -> list[int]:
    if "text" in opening:
        return lm.encode(opening["text"])
    return lm.encode_conversation([(message["role"], message["content"]) for message in opening["messages"]])
