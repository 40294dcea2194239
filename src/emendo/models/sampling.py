"""Sampling text from the model itself with an explicit random generator; the global RNG is never touched."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from emendo.models.adapter import ModelAdapter


def sample_tokens(
    adapter: ModelAdapter,
    starts: Int[Tensor, "batch start"],
    new_tokens: int,
    generator: torch.Generator,
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
) -> Int[Tensor, "batch total"]:
    """Continue rows of equal length by sampling, with a key/value cache.

    Args:
        adapter: The model.
        starts: Tokens to continue; all rows have the same length.
        new_tokens: How many tokens to add to each row.
        generator: Source of randomness, on the CPU whatever the model's device, so that a seed means the same.
        top_k: Keep only the k most likely tokens, renormalised; None keeps all.
        temperature: Divides the logits.

    Returns:
        The rows, start included, ``[batch, start + new_tokens]``.
    """
    tokens = starts.to(adapter.device)
    cache = DynamicCache(config=adapter.model.config)
    step = tokens
    with adapter.quiet(), torch.no_grad():
        for _ in range(new_tokens):
            out = adapter.decoder(input_ids=step, past_key_values=cache, use_cache=True)
            logits = adapter.unembed(out.last_hidden_state[:, -1]).cpu() / temperature
            if top_k is not None:
                values, candidates = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
                pick = torch.multinomial(values.softmax(-1), 1, generator=generator)
                step = candidates.gather(-1, pick)
            else:
                step = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            step = step.to(tokens.device)
            tokens = torch.cat([tokens, step], dim=-1)
    return tokens
