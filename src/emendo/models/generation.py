"""Generation, written out: `model.generate` adds what a model's generation config holds (penalties, beams)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from emendo.errors import NumericalError
from emendo.models.batch import pack_by_tokens
from emendo.models.runnable import RunnableModel
from emendo.requests import Prompt

CPU_TOKEN_BUDGET = 4096
ACCELERATOR_TOKEN_BUDGET = 32_768
"""Default tokens of one batch, new ones included: they bound the keys and values that are held."""

Choice: TypeAlias = Callable[[Float[Tensor, "rows vocab"], Sequence[int], int], Int[Tensor, " rows"]]
"""Picks the next token of each row from its logits, given the rows' numbers and how many tokens are new so far."""


@dataclass(frozen=True)
class Continuation:
    """What follows a row of tokens.

    Attributes:
        ids: The new tokens, without the one that ended them.
        stopped: A stop token ended them, rather than the limit.
    """

    ids: tuple[int, ...]
    stopped: bool


def most_likely(logits: Float[Tensor, "rows vocab"], rows: Sequence[int], step: int) -> Int[Tensor, " rows"]:
    """Greedy choice."""
    return logits.argmax(dim=-1)


def greedy_continuations(lm: RunnableModel, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
    """Continue prompts with the most likely tokens.

    Args:
        lm: The model.
        prompts: Texts to continue, or conversations to answer.
        max_new_tokens: Most tokens to add to each; a continuation ends earlier at an EOS or at the last position.

    Raises:
        InputError: A prompt is longer than the model has positions for.
        NumericalError: Logits are not finite.
    """
    rows = [lm.encode_prompt(prompt) for prompt in prompts]
    found = continue_rows(lm, rows, [max_new_tokens] * len(rows))
    return [lm.decode_after(row, continuation.ids) for row, continuation in zip(rows, found, strict=True)]


def continue_rows(
    lm: RunnableModel,
    rows: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    *,
    choose: Choice = most_likely,
    stop: bool = True,
    token_budget: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Continue rows of tokens with a key/value cache, in batches of similar length.

    Args:
        lm: The model.
        rows: Token ids to continue.
        new_tokens: Most tokens to add to each row; it also ends at the model's last position.
        choose: Picks tokens; greedy unless given.
        stop: End a row at one of the model's stop tokens; otherwise they are tokens like others.
        token_budget: Most tokens of a batch, padding and new ones included; None: 4,096 on a CPU, 32,768 elsewhere.
        on_rows: Told how many rows each batch finished.

    Raises:
        InputError: A row is longer than the model has positions for.
        NumericalError: Logits are not finite.
    """
    if token_budget is None:
        token_budget = CPU_TOKEN_BUDGET if lm.device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET
    if not rows:
        return []
    lm.batch(rows)  # refuses rows that are too long
    limits = [min(n, lm.max_length - len(row)) for row, n in zip(rows, new_tokens, strict=True)]
    found = [Continuation((), False)] * len(rows)
    with lm.isolated() as own:
        for group in pack_by_tokens([len(row) + n for row, n in zip(rows, limits, strict=True)], token_budget):
            for row, continuation in zip(group, _continue_batch(own, rows, limits, group, choose, stop), strict=True):
                found[row] = continuation
            if on_rows:
                on_rows(len(group))
    return found


def check_finite(lm: RunnableModel, logits: Float[Tensor, "rows vocab"]) -> None:
    """Refuse logits from which no token can be chosen.

    Raises:
        NumericalError: One is not finite.
    """
    if not logits.isfinite().all():
        raise NumericalError(
            f"logits of {lm.name!r} are not finite in {lm.dtype}, so no token can be chosen; expected finite "
            "ones. Load the model with --dtype float32 or --dtype bfloat16, or roll back the edit that made them so"
        )


def _continue_batch(
    lm: RunnableModel,
    all_rows: Sequence[Sequence[int]],
    limits: Sequence[int],
    group: Sequence[int],
    choose: Choice,
    stop: bool,
) -> list[Continuation]:
    """Continuations of the rows of one batch, by an isolated model."""
    rows = [list(all_rows[row]) for row in group]
    longest = max(map(len, rows))
    # Continuations grow on the right, so here, and only here, padding stands on the left.
    ids = torch.tensor([[lm.pad_id] * (longest - len(row)) + row for row in rows], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=lm.device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    cache, new, stop_ids = DynamicCache(config=lm.config), [list[int]() for _ in rows], lm.stop_ids
    open_rows, stopped = {place for place, row in enumerate(group) if limits[row] > 0}, set[int]()
    kept = lm.keeping(cache)
    with torch.no_grad():
        for step in range(max(limits[row] for row in group)):
            out = lm.decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                **kept,
                return_dict=True,
            )
            logits = lm.unembed(out.last_hidden_state[:, -1])
            check_finite(lm, logits)
            tokens = choose(logits, group, step)
            ids = tokens[:, None].to(mask.device)
            drawn = tokens.tolist()
            if stop:
                ended = {place for place in open_rows if drawn[place] in stop_ids}
                stopped |= ended
                open_rows -= ended
            for place in open_rows:
                new[place].append(drawn[place])
            open_rows = {place for place in open_rows if len(new[place]) < limits[group[place]]}
            if not open_rows:
                break
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            # A finished row that is carried along stays within the positions of the model.
            positions = (positions[:, -1:] + 1).clamp_max(lm.max_length - 1)
    return [Continuation(tuple(tokens), place in stopped) for place, tokens in enumerate(new)]
