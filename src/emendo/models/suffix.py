"""Run only the blocks above a layer, only on the last few positions of many prompts, packed without padding.

A vector added to the residual stream at layer L and position p changes nothing at or below L and nothing
before p. So one ordinary forward pass (`prefill`) gives everything constant: hidden states at layer L from p on,
and the keys and values of earlier positions in the blocks above. `replay` then repeats only
what can change.

Positions of all prompts stand in one row of tokens (`models.packed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from emendo.errors import InputError
from emendo.models.batch import TokenBatch, pack_by_tokens
from emendo.models.editable import EditableModel
from emendo.models.hooks import Capture, block_output, recording
from emendo.models.packed import PackedLayout, SuffixLayout, alibi_table, cached_past, packed_attention

__all__ = ["Prefill", "SuffixLayout", "packed_attention", "prefill", "replay", "select_rows"]


@dataclass(frozen=True)
class Prefill:
    """The constant part of many prompts, from one forward pass.

    Attributes:
        resid: Residual stream above the start layer, packed suffix tokens ``[tokens, d_model]``.
        entering: Residual stream below the start layer, likewise.
        mlp_out: Down-projection output at the start layer, likewise.
        attention_out: Attention output at the start layer, likewise.
        final: Hidden states after the final norm of the same tokens, the oracle of the replay.
        layout: Where the packed tokens stand.
    """

    resid: Float[Tensor, "tokens d_model"]
    entering: Float[Tensor, "tokens d_model"]
    mlp_out: Float[Tensor, "tokens d_model"]
    attention_out: Float[Tensor, "tokens d_model"]
    final: Float[Tensor, "tokens d_model"]
    layout: SuffixLayout


def prefill(
    lm: EditableModel, batch: TokenBatch, starts: Sequence[int], layer: int, *, chunk_tokens: int = 2048
) -> Prefill:
    """Run prompts once and keep what a change at `layer` from `starts` on cannot alter.

    Args:
        lm: The model.
        batch: Prompts, right padded.
        starts: First suffix position of each prompt.
        layer: The layer inside or after which something will be added.
        chunk_tokens: Most padded tokens in one forward pass.

    Raises:
        InputError: A prompt is longer than the model's sliding attention window.
    """
    _refuse_sliding_window(lm, batch)
    home = lm.block_device(layer)  # of everything packed, wherever the other blocks are
    lengths = batch.lengths.to(home)
    ends = lengths.tolist()  # once: a value read from a GPU waits for all that it has been given
    first = torch.tensor(list(starts), device=home)
    width, n_past = max(end - start for end, start in zip(ends, starts, strict=True)), max(starts)
    grid = torch.arange(width, device=lengths.device)[None] + first[:, None]
    rows, steps = torch.nonzero(grid < lengths[:, None], as_tuple=True)
    resid, entering, mlp_out, attention_out, final = ([torch.empty(0)] * len(starts) for _ in range(5))
    past: dict[int, tuple[Tensor, Tensor]] = {}
    # Rows of like length share a pass, so that little padding is run.
    for group in pack_by_tokens(ends, chunk_tokens):
        part = torch.tensor(group, device=lengths.device)
        longest = max(ends[row] for row in group)
        capture, cache, out = _keep_everything(lm, batch, part, longest, layer)
        for place, row in enumerate(group):
            suffix = slice(starts[row], ends[row])
            for found, captured in (
                (resid, capture.resid),
                (entering, capture.entering),
                (mlp_out, capture.mlp_out),
                (attention_out, capture.attention_out),
            ):
                found[row] = captured[layer][place, suffix]
            final[row] = out[place, suffix].to(home)
        for index in range(layer, lm.n_layers):
            stored, kept = cached_past(lm, cache, index), min(n_past, longest)
            if index not in past:
                shapes = [(len(starts), one.shape[1], n_past, one.shape[3]) for one in stored]  # values may be narrower
                past[index] = stored[0].new_zeros(shapes[0]), stored[1].new_zeros(shapes[1])
            there = part.to(stored[0].device)
            for whole, latest in zip(past[index], stored, strict=True):
                whole[there, :, :kept] = latest[:, :, :kept]
    layout = SuffixLayout(
        rows=rows,
        steps=steps,
        positions=steps + first[rows],
        n_rows=len(starts),
        width=width,
        past=past,
        past_mask=torch.arange(n_past, device=first.device)[None] < first[:, None],
        alibi=alibi_table(lm, max(ends), resid[0].dtype, home),
    )
    return Prefill(
        resid=torch.cat(resid),
        entering=torch.cat(entering),
        mlp_out=torch.cat(mlp_out),
        attention_out=torch.cat(attention_out),
        final=torch.cat(final),
        layout=layout,
    )


def _keep_everything(
    lm: EditableModel, batch: TokenBatch, part: Tensor, longest: int, layer: int
) -> tuple[Capture, DynamicCache, Tensor]:
    """One ordinary forward pass of some rows: activations at `layer`, all keys and values, final hidden states."""
    # Without a configuration the cache keeps every position; a sliding layer's would drop the first ones.
    capture, cache, at = Capture(), DynamicCache(), [layer]
    part = part.to(batch.input_ids.device)
    with (
        lm.isolated() as own,
        torch.no_grad(),
        recording(own, capture, mlp_out=at, resid=at, entering=at, attention_out=at),
    ):
        out = own.decoder(
            input_ids=batch.input_ids[part, :longest],
            attention_mask=batch.attention_mask[part, :longest].long(),
            **own.keeping(cache),
            return_dict=True,
        )
    return capture, cache, out.last_hidden_state


def select_rows(layout: SuffixLayout, keep: Sequence[int]) -> tuple[SuffixLayout, Int[Tensor, " kept_tokens"]]:
    """The layout of some of the prompts, in order, and which packed tokens they keep.

    Args:
        layout: The layout to shrink.
        keep: Ascending row numbers to keep.
    """
    device = layout.rows.device
    kept = torch.tensor(list(keep), device=device)
    renumber = torch.full((layout.n_rows,), -1, device=device)
    renumber[kept] = torch.arange(len(keep), device=device)
    tokens = torch.nonzero(renumber[layout.rows] >= 0).flatten()
    smaller = replace(
        layout,
        rows=renumber[layout.rows[tokens]],
        steps=layout.steps[tokens],
        positions=layout.positions[tokens],
        n_rows=len(keep),
        width=int(layout.steps[tokens].max()) + 1,
        past={
            layer: (keys[kept.to(keys.device)], values[kept.to(keys.device)])
            for layer, (keys, values) in layout.past.items()
        },
        past_mask=layout.past_mask[kept],
    )
    return smaller, tokens


def replay(
    lm: EditableModel, hidden: Float[Tensor, "tokens d_model"], layout: PackedLayout, layer: int
) -> Float[Tensor, "tokens d_model"]:
    """Hidden states after the final norm, from the residual stream after `layer`; differentiable in `hidden`.

    Layer -1 is what enters the first block.

    To be called inside `packed_attention(lm)`, of an isolated model.
    """
    stream, above = hidden[None], range(layer + 1, lm.n_layers)
    for index, arguments in zip(above, block_arguments(lm, hidden, layout, above), strict=True):
        stream = block_output(lm.blocks[index](stream.to(lm.block_device(index)), **arguments))
    return lm.finish(stream)[0].to(hidden.device)


def block_arguments(
    lm: EditableModel, hidden: Tensor, layout: PackedLayout, layers: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """What each block takes besides the residual stream; made once for blocks of one kind on one device."""
    made: dict[tuple[torch.device, str | None], dict[str, Any]] = {}
    for layer in layers:
        device, layer_type = lm.block_device(layer), lm.rotary_type(layer)
        if (device, layer_type) not in made:
            here = layout.on(device)
            arguments: dict[str, Any] = dict.fromkeys(lm.spec.idle_arguments)
            arguments |= {"attention_mask": here, "position_ids": here.positions[None]}
            if lm.spec.rotary is not None:
                rotary: Any = lm.decoder.get_submodule(lm.spec.rotary)
                # Only dtype and device are read of the hidden states.
                like, axes = hidden.detach()[None, :1].to(device), lm.spec.rotary_axes
                positions = here.positions.expand(axes, 1, -1) if axes > 1 else here.positions[None]
                by_type = {} if layer_type is None else {"layer_type": layer_type}
                arguments["position_embeddings"] = rotary(like, position_ids=positions, **by_type)
            made[device, layer_type] = arguments
        yield made[device, layer_type]


def _refuse_sliding_window(lm: EditableModel, batch: TokenBatch) -> None:
    """Past keys outside a sliding window are hidden from the model's own attention and would be seen here."""
    windows = [window for block in lm.blocks if (window := _window_of(lm, block)) is not None]
    longest = int(batch.lengths.max())
    if windows and longest > min(windows):
        raise InputError(
            f"an edit prompt has {longest} tokens in context, more than the model's sliding attention window of "
            f"{min(windows)}; shorten the prompt"
        )


def _window_of(lm: EditableModel, block: Any) -> int | None:
    """How many positions a block's attention sees; None where it sees all of them.

    Where layers differ, the attention module knows which kind it is (its configuration can name a window that no layer
    has); otherwise the configuration speaks for all.
    """
    attention: Any = block.get_submodule(lm.spec.attention)
    kind = getattr(attention, "attention_type", None)
    if kind == "global" or not getattr(attention, "is_sliding", True):
        return None
    if kind == "local":  # GPT-Neo
        return int(attention.config.window_size)
    if not hasattr(attention, "sliding_window"):
        kinds = getattr(lm.config, "layer_types", None)
        if kinds is not None and kinds[attention.layer_idx] == "full_attention":
            return None
    holder = attention if hasattr(attention, "sliding_window") else lm.config
    # Qwen2-MoE's configuration says 0 for none.
    return int(getattr(holder, "sliding_window", None) or 0) or None
