"""Documents sampled from the model itself, numbered, each determined by the seed and its number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from emendo.models import EditableModel
from emendo.models.sampling import row_uniforms, sample_tokens


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
