"""Sampling text from the model itself, each row with its own stream of random numbers.

A row depends on its own numbers alone (up to rounding of batched matrix products), so it is the same in whatever batch
it is sampled and a resumed run continues exactly where it stopped. No global random state is read or changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from emendo.models.editable import EditableModel
from emendo.models.generation import check_finite

NOT_GIVEN = -1
"""Where a row has no given token."""


def sample_tokens(
    lm: EditableModel,
    starts: Int[Tensor, "batch start"],
    uniform: Float[Tensor, "batch total"],
    *,
    top_k: int | None = None,
    temperature: float = 1.0,
    restart: tuple[int, int] | None = None,
    given: Int[Tensor, "batch total"] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Int[Tensor, "batch total"]:
    """Continue rows of equal length by sampling, with a key/value cache.

    Args:
        lm: The model.
        starts: Tokens to continue; all rows have the same length.
        uniform: One number in [0, 1) for each token of each finished row, as `row_uniforms` makes them; those at the
            positions of `starts` are not used.
        top_k: Keep only the k most likely tokens, renormalised; None keeps all.
        temperature: Divides the logits; 1 is the model's own distribution.
        restart: ``(end, start)``: after token `end` the next token is always `start`.
        given: Tokens that are not drawn, for rows whose beginnings differ in length; `NOT_GIVEN` elsewhere.
        on_step: Told the number of tokens that each step added.

    Returns:
        The rows, start included, ``[batch, total]``.

    Raises:
        NumericalError: Logits are not finite.
    """
    tokens, report = starts.to(lm.device), on_step or (lambda n: None)
    uniform = uniform.to(lm.device)
    step, cache = tokens, DynamicCache(config=lm.config)
    report(tokens.numel())
    with lm.isolated() as own, torch.no_grad():
        kept = own.keeping(cache)
        for position in range(tokens.shape[1], uniform.shape[1]):
            out = own.decoder(input_ids=step, **kept, return_dict=True)
            logits = own.unembed(out.last_hidden_state[:, -1])
            check_finite(lm, logits)
            logits = logits / temperature
            drawn = draw(logits, uniform[:, position].to(logits.device), top_k=top_k).to(tokens)
            if restart is not None:
                drawn = torch.where(tokens[:, -1] == restart[0], restart[1], drawn)
            if given is not None:
                fixed = given[:, position].to(drawn)
                drawn = torch.where(fixed == NOT_GIVEN, drawn, fixed)
            step = drawn[:, None]
            tokens = torch.cat([tokens, step], dim=1)
            report(len(tokens))
    return tokens


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


def row_uniforms(seed: int, row: int, length: int) -> Float[Tensor, " length"]:
    """The random numbers of one row; made on the CPU whatever the model's device, so that a seed means the same."""
    mixed = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(mixed[:4], "big"))
    return torch.rand(length, generator=generator, dtype=torch.float32, device="cpu")
