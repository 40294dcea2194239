"""Text sampled from the model itself: many sequences at once, each with its own stream of random numbers.

Sequence i depends on the seed and on i alone (up to rounding of batched matrix products), so a resumed run
continues exactly where it stopped, and no global random state is read or changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.models import ModelAdapter


def sample_sequences(
    adapter: ModelAdapter,
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
    """Sample sequences token by token with a key/value cache.

    Args:
        adapter: The model.
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
    uniform = torch.stack([_uniforms(seed, row, length) for row in rows])
    candidates = torch.tensor(list(first_tokens))
    first = candidates[(uniform[:, len(prefix)] * len(candidates)).long()]
    head = [torch.full_like(first, token) for token in prefix] + [first]
    tokens = torch.stack(head, dim=1).to(adapter.device)
    uniform = uniform.to(adapter.device)
    step, cache = tokens, None
    with adapter.quiet(), torch.no_grad():
        for position in range(tokens.shape[1], length):
            out = adapter.decoder(input_ids=step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = adapter.unembed(out.last_hidden_state[:, -1]) / temperature
            drawn = draw(logits, uniform[:, position].to(logits.device), top_k=top_k)
            if restart is not None:
                drawn = torch.where(tokens[:, -1] == restart[0], restart[1], drawn.to(tokens))
            step = drawn.to(tokens)[:, None]
            tokens = torch.cat([tokens, step], dim=1)
            if on_step is not None:
                on_step(len(rows))
    return [list(map(int, row)) for row in tokens.tolist()]


def draw(
    logits: Float[Tensor, "n vocab"], uniform: Float[Tensor, " n"], *, top_k: int | None = None
) -> Int[Tensor, " n"]:
    """One token for each row by inverting the cumulative distribution at a uniform number.

    `torch.multinomial` draws a random number for every entry of the vocabulary; this needs one for each row.

    Args:
        logits: Unnormalised log-probabilities, shape ``[n, vocab]``.
        uniform: Numbers in [0, 1), shape ``[n]``.
        top_k: Keep only the k most likely tokens; None keeps all.
    """
    if top_k is not None:
        values, candidates = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        return candidates.gather(-1, draw(values, uniform)[:, None])[:, 0]
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    # The last entry is 1 only up to rounding: scaling the target keeps every draw inside the table.
    target = uniform[:, None].to(cumulative) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return picked.clamp_(max=logits.shape[-1] - 1)


def _uniforms(seed: int, row: int, length: int) -> Float[Tensor, " length"]:
    """The random numbers of one sequence; on the CPU whatever the model's device, so a seed means the same."""
    mixed = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "big"))
    return torch.rand(length, generator=generator)
