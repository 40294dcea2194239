"""Greedy generation, written out: `model.generate` adds what a model's generation config holds (penalties, beams)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

if TYPE_CHECKING:
    from emendo.models.adapter import ModelAdapter


def greedy_continuations(adapter: ModelAdapter, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Continue raw prompts with the most likely tokens, all in one batch with a key/value cache.

    Args:
        adapter: The model.
        prompts: Texts to continue.
        max_new_tokens: Most tokens to add to each; a continuation ends earlier at an EOS or at the last position.

    Raises:
        InputError: A prompt is longer than the model has positions for.
    """
    rows = [adapter.encode(prompt) for prompt in prompts]
    longest = max(map(len, rows))
    adapter.batch(rows)  # refuses prompts that are too long
    # Continuations grow on the right, so here, and only here, padding stands on the left.
    ids = torch.tensor([[adapter.pad_id] * (longest - len(row)) + row for row in rows], device=adapter.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=adapter.device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    cache, new = DynamicCache(config=adapter.config), [list[int]() for _ in rows]
    open_rows, stop_ids = set(range(len(rows))), adapter.stop_ids
    with adapter.quiet(), torch.no_grad():
        for _ in range(min(max_new_tokens, adapter.max_length - longest)):
            out = adapter.decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
            ids = adapter.unembed(out.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True).to(mask.device)
            tokens = ids[:, 0].tolist()
            for row in sorted(open_rows):
                if tokens[row] in stop_ids:
                    open_rows.remove(row)
                else:
                    new[row].append(tokens[row])
            if not open_rows:
                break
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return [adapter.decode(row) for row in new]
