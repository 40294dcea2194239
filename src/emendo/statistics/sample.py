"""Text that the model writes itself: documents numbered, each determined by the seed and its number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emendo.arguments import Count, Positive, Seed, check_fields
from emendo.errors import CorpusError
from emendo.models import EditableModel
from emendo.models.sampling import NOT_GIVEN, row_uniforms, sample_tokens
from emendo.progress import Progress, Silent
from emendo.statistics.packing import bos_ids

SELF = "self"
"""The name of the model's own text in settings and on the command line."""

SAMPLE_ROWS = 128
"""Sequences sampled at once: enough rows for fast matrix products, little enough key/value cache."""


class SampledText(ABC):
    """Text that the model writes, in groups of sequences that begin at fixed numbers."""

    @abstractmethod
    def sampled(
        self,
        lm: EditableModel,
        rows: range,
        length: int,
        restart: tuple[int, int] | None,
        on_step: Callable[[int], None],
    ) -> list[list[int]]:
        """The sequences of one group.

        Args:
            lm: The model.
            rows: Their numbers, which with a seed determine the text.
            length: Tokens of a sequence.
            restart: The end of a text and what is put after it; None: nothing ends.
            on_step: Told how many tokens were sampled.
        """

    def sampled_tokens(self, *, length: int, count: int, start: int = 0) -> int:
        """All tokens of the sequences from the beginning of a group on."""
        return (count - start // SAMPLE_ROWS * SAMPLE_ROWS) * length

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
        restart = (end, prefix[-1]) if prefix and end is not None else None
        for rows in sample_groups(start, count):
            yield from self.sampled(lm, rows, length, restart, progress.advance)[max(0, start - rows.start) :]


@dataclass(frozen=True)
class SelfSampledCorpus(SampledText):
    """Text that the model writes itself: no data needed.

    Every sequence starts with the model's BOS if it has one, then a token drawn uniformly from the vocabulary,
    which spreads the topics, then tokens sampled one by one.

    Args:
        seed: Seed of the sample.
        temperature: Divides the logits; 1 is the model's own distribution.
        top_k: Keep only the k most likely tokens; None keeps all.
    """

    seed: Seed = 0
    temperature: Positive = 1.0
    top_k: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self, CorpusError)

    def describe(self) -> dict[str, Any]:
        """The sampling settings; the text also depends on the model, whose digest is recorded beside them."""
        return {
            "kind": "self",
            "seed": self.seed,
            "temperature": float(self.temperature),
            "top_k": self.top_k,
            "start": "uniform token",
        }

    def sampled(
        self,
        lm: EditableModel,
        rows: range,
        length: int,
        restart: tuple[int, int] | None,
        on_step: Callable[[int], None],
    ) -> list[list[int]]:
        """See `SampledText.sampled`."""
        special = {*lm.tokenizer.added_tokens_decoder, *lm.tokenizer.all_special_ids}
        return sample_sequences(
            lm,
            rows,
            length=length,
            seed=self.seed,
            prefix=bos_ids(lm),
            first_tokens=[token for token in range(len(lm.tokenizer)) if token not in special and lm.knows(token)],
            temperature=self.temperature,
            top_k=self.top_k,
            restart=restart,
            on_step=on_step,
        )


def sample_groups(start: int, count: int) -> Iterator[range]:
    """Numbers of the sequences that are sampled together, from the group of `start` on.

    Groups begin at fixed numbers, so that a resumed run repeats the same batched products.
    """
    for group in range(start // SAMPLE_ROWS, -(-count // SAMPLE_ROWS)):
        yield range(group * SAMPLE_ROWS, min(count, (group + 1) * SAMPLE_ROWS))


def sample_sequences(
    lm: EditableModel,
    rows: Sequence[int],
    *,
    length: int,
    seed: int,
    prefix: Sequence[int],
    first_tokens: Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    restart: tuple[int, int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Sample sequences of equal length.

    Args:
        lm: The model.
        rows: Numbers of the sequences to sample; together with `seed` they determine the text.
        length: Tokens of each sequence, prefix included.
        seed: Seed of the whole sample.
        prefix: Tokens that every sequence starts with (the model's BOS, or nothing).
        first_tokens: The token after the prefix is drawn uniformly from these.
        temperature: Divides the logits; 1 is the model's own distribution.
        top_k: Keep only the k most likely tokens, renormalised; None keeps all.
        restart: ``(end, start)``: after token `end` the next token is always `start`.
        on_step: Told the number of tokens that each step added.

    Returns:
        One list of token ids for each row.
    """
    uniform = torch.stack([row_uniforms(seed, row, length) for row in rows])
    candidates = torch.tensor(list(first_tokens))
    first = candidates[(uniform[:, len(prefix)] * len(candidates)).long()]
    starts = torch.stack([*(torch.full_like(first, token) for token in prefix), first], dim=1)
    tokens = sample_tokens(lm, starts, uniform, top_k=top_k, temperature=temperature, restart=restart, on_step=on_step)
    return [list(map(int, row)) for row in tokens.tolist()]


def continue_sequences(
    lm: EditableModel,
    rows: Sequence[int],
    starts: Sequence[Sequence[int]],
    *,
    length: int,
    seed: int,
    restart: tuple[int, int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Sample on from given tokens until all sequences have one length.

    Args:
        lm: The model.
        rows: Numbers of the sequences to sample.
        starts: What each begins with: at least one token, at most `length`.
        length: Tokens of each sequence.
        seed: Seed of the whole sample.
        restart: See `sample_sequences`.
        on_step: See `sample_sequences`.

    Returns:
        One list of token ids for each row.
    """
    uniform = torch.stack([row_uniforms(seed, row, length) for row in rows])
    given = torch.full((len(starts), length), NOT_GIVEN)
    for number, start in enumerate(starts):
        given[number, : len(start)] = torch.tensor(start)
    first = given[:, : min(map(len, starts))]
    tokens = sample_tokens(lm, first, uniform, given=given, restart=restart, on_step=on_step)
    return [list(map(int, row)) for row in tokens.tolist()]
