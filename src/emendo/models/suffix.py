"""Run only the blocks above a layer, only on the last few positions of many prompts, packed without padding.

A vector added to the residual stream at layer L and position p changes nothing at or below L and nothing
before p. So one ordinary forward pass (`prefill`) gives everything constant: hidden states at layer L from p on,
and the keys and values of earlier positions in the blocks above. `replay` then repeats only
what can change.

Positions of all prompts stand in one row of tokens: norms and linear maps never see padding. Only attention must
know which token belongs to which prompt; a block hands its `attention_mask` unchanged to its attention
function, so the layout travels in that argument and nothing is global.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import AttentionInterface

from emendo.errors import InputError
from emendo.models.adapter import Capture, ModelAdapter, block_output
from emendo.models.batch import TokenBatch, pack_by_tokens

PACKED_ATTENTION = "emendo_packed_suffix"
"""Name under which transformers' attention interface finds `_packed_attention`."""


@dataclass(frozen=True)
class SuffixLayout:
    """Which prompt and position every packed token stands at, and the constant past of each prompt.

    Args:
        rows: Prompt of each packed token, ascending, shape ``[tokens]``.
        steps: Position of each packed token within its suffix, from 0, shape ``[tokens]``.
        positions: Absolute position of each packed token in its prompt, shape ``[tokens]``.
        n_rows: Number of prompts.
        width: Longest suffix.
        past: Keys and values before the suffix by layer, each ``[n_rows, kv_heads, past, head_dim]``.
        past_mask: True where a past position is real, shape ``[n_rows, past]``.
    """

    rows: Int[Tensor, " tokens"]
    steps: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    n_rows: int
    width: int
    past: dict[int, tuple[Tensor, Tensor]]
    past_mask: Bool[Tensor, "n_rows past"]

    @cached_property
    def slots(self) -> Int[Tensor, " tokens"]:
        """Where each packed token lands in a padded ``[n_rows × width]`` grid."""
        return self.rows * self.width + self.steps

    def unpack(self, packed: Float[Tensor, "heads tokens dim"]) -> Float[Tensor, "n_rows heads width dim"]:
        """Spread packed tokens over a padded grid."""
        heads, _, dim = packed.shape
        grid = packed.new_zeros(self.n_rows * self.width, heads, dim)
        grid = grid.index_copy(0, self.slots, packed.transpose(0, 1))
        return grid.view(self.n_rows, self.width, heads, dim).transpose(1, 2)

    def pack(self, grid: Float[Tensor, "n_rows heads width dim"]) -> Float[Tensor, "tokens heads dim"]:
        """Gather packed tokens from a padded grid."""
        _, heads, _, dim = grid.shape
        return grid.transpose(1, 2).reshape(self.n_rows * self.width, heads, dim)[self.slots]

    @cached_property
    def allowed(self) -> tuple[Bool[Tensor, "n_rows 1 1 past"], Bool[Tensor, "n_rows 1 width width"]]:
        """What a suffix position may attend to: real past positions, and suffix positions up to itself."""
        device = self.rows.device
        real = torch.zeros(self.n_rows * self.width, dtype=torch.bool, device=device)
        real[self.slots] = True
        causal = torch.ones(self.width, self.width, dtype=torch.bool, device=device).tril()
        # The diagonal stays open in padded rows, so that no softmax is over nothing.
        own = torch.eye(self.width, dtype=torch.bool, device=device)
        suffix = (causal[None] & real.view(self.n_rows, 1, self.width)) | own[None]
        return self.past_mask[:, None, None, :], suffix[:, None]


def _packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens dim"],
    attention_mask: SuffixLayout,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """Attention of packed suffix tokens over their prompt's past and their own suffix.

    Past and suffix are two products under one softmax, so the past is neither copied nor differentiated.
    """
    layout = attention_mask
    past_keys, past_values = layout.past[module.layer_idx]  # type: ignore[index]
    kv_heads, dim = past_keys.shape[1], query.shape[-1]
    q = layout.unpack(query[0]) * (dim**-0.5 if scaling is None else scaling)
    k, v = layout.unpack(key[0]), layout.unpack(value[0])
    # Query heads that share one key head form one taller matrix: [rows, kv_heads, groups × width, dim].
    n_rows, heads, width = q.shape[:3]
    q = q.reshape(n_rows, kv_heads, heads // kv_heads * width, dim)
    see_past, see_suffix = layout.allowed
    see_suffix = see_suffix.repeat(1, 1, heads // kv_heads, 1)
    n_past = past_keys.shape[2]
    scores = torch.cat(
        [
            (q @ past_keys.transpose(-1, -2)).masked_fill(~see_past, float("-inf")),
            (q @ k.transpose(-1, -2)).masked_fill(~see_suffix, float("-inf")),
        ],
        dim=-1,
    )
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    out = weights[..., :n_past] @ past_values + weights[..., n_past:] @ v
    return layout.pack(out.reshape(n_rows, heads, width, dim))[None], None


# transformers looks attention functions up by name; registering one is how a model is given another.
AttentionInterface.register(PACKED_ATTENTION, _packed_attention)


def _packed_attention_method(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: SuffixLayout
) -> tuple[Tensor, None]:
    """`_packed_attention` in the shape of GPT-J's own `_attn` method, which returns heads before tokens."""
    out, _ = _packed_attention(module, query, key, value, attention_mask)
    return out.transpose(1, 2), None


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
    adapter: ModelAdapter, batch: TokenBatch, starts: Sequence[int], layer: int, *, chunk_tokens: int = 2048
) -> Prefill:
    """Run prompts once and keep what a change at `layer` from `starts` on cannot alter.

    Args:
        adapter: The model.
        batch: Prompts, right padded.
        starts: First suffix position of each prompt.
        layer: The layer inside or after which something will be added.
        chunk_tokens: Most padded tokens in one forward pass.

    Raises:
        InputError: A prompt is longer than the model's sliding attention window.
    """
    _refuse_sliding_window(adapter, batch)
    lengths = batch.lengths
    first = torch.tensor(list(starts), device=lengths.device)
    width, n_past = int((lengths - first).max()), int(first.max())
    grid = torch.arange(width, device=lengths.device)[None] + first[:, None]
    rows, steps = torch.nonzero(grid < lengths[:, None], as_tuple=True)
    resid, entering, mlp_out, attention_out, final = ([torch.empty(0)] * len(starts) for _ in range(5))
    past: dict[int, tuple[Tensor, Tensor]] = {}
    # Rows of like length share a pass, so that little padding is run.
    for group in pack_by_tokens(lengths.tolist(), chunk_tokens):
        part = torch.tensor(group, device=lengths.device)
        longest = int(lengths[part].max())
        capture, cache, out = _keep_everything(adapter, batch, part, longest, layer)
        for place, row in enumerate(group):
            suffix = slice(starts[row], int(lengths[row]))
            for found, captured in (
                (resid, capture.resid),
                (entering, capture.entering),
                (mlp_out, capture.mlp_out),
                (attention_out, capture.attention_out),
            ):
                found[row] = captured[layer][place, suffix]
            final[row] = out[place, suffix]
        for index in range(layer, adapter.n_layers):
            stored, kept = cache.layers[index], min(n_past, longest)
            if index not in past:
                shape = (len(starts), stored.keys.shape[1], n_past, stored.keys.shape[3])
                past[index] = (stored.keys.new_zeros(shape), stored.values.new_zeros(shape))
            past[index][0][part, :, :kept] = stored.keys[:, :, :kept]
            past[index][1][part, :, :kept] = stored.values[:, :, :kept]
    layout = SuffixLayout(
        rows=rows,
        steps=steps,
        positions=steps + first[rows],
        n_rows=len(starts),
        width=width,
        past=past,
        past_mask=torch.arange(n_past, device=first.device)[None] < first[:, None],
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
    adapter: ModelAdapter, batch: TokenBatch, part: Tensor, longest: int, layer: int
) -> tuple[Capture, DynamicCache, Tensor]:
    """One ordinary forward pass of some rows: activations at `layer`, all keys and values, final hidden states."""
    # Without a configuration the cache keeps every position; a sliding layer's would drop the first ones.
    capture, cache, at = Capture(), DynamicCache(), [layer]
    recording = adapter.recording(capture, mlp_out=at, resid=at, entering=at, attention_out=at)
    with adapter.quiet(), torch.no_grad(), recording:
        out = adapter.decoder(
            input_ids=batch.input_ids[part, :longest],
            attention_mask=batch.attention_mask[part, :longest].long(),
            past_key_values=cache,
            use_cache=True,
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
    smaller = SuffixLayout(
        rows=renumber[layout.rows[tokens]],
        steps=layout.steps[tokens],
        positions=layout.positions[tokens],
        n_rows=len(keep),
        width=int(layout.steps[tokens].max()) + 1,
        past={layer: (keys[kept], values[kept]) for layer, (keys, values) in layout.past.items()},
        past_mask=layout.past_mask[kept],
    )
    return smaller, tokens


@contextmanager
def packed_attention(adapter: ModelAdapter) -> Iterator[None]:
    """Blocks attend through packed suffixes while the context lasts; the model is quiet and then as it was."""
    attentions = [block.get_submodule(adapter.spec.attention) for block in adapter.blocks]
    if adapter.spec.attention_seam == "method":
        try:
            for attention in attentions:
                attention._attn = partial(_packed_attention_method, attention)  # type: ignore[assignment]
            with adapter.quiet():
                yield
        finally:
            for attention in attentions:
                attention.__dict__.pop("_attn", None)
        return
    configs = {id(attention.config): attention.config for attention in attentions}.values()
    before = [config._attn_implementation_internal for config in configs]  # type: ignore[union-attr]
    try:
        for config in configs:
            config._attn_implementation_internal = PACKED_ATTENTION  # type: ignore[union-attr]
        with adapter.quiet():
            yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation_internal = value  # type: ignore[union-attr]


def replay(
    adapter: ModelAdapter, hidden: Float[Tensor, "tokens d_model"], layout: SuffixLayout, layer: int
) -> Float[Tensor, "tokens d_model"]:
    """Hidden states after the final norm, from the residual stream after `layer`; differentiable in `hidden`.

    To be called inside `packed_attention(adapter)`.
    """
    stream = hidden[None]
    positions = layout.positions[None]
    extra: dict[str, Any] = {"position_ids": positions}
    if adapter.spec.rotary is not None:
        rotary = adapter.decoder.get_submodule(adapter.spec.rotary)
        extra["position_embeddings"] = rotary(stream, position_ids=positions)
    for block in adapter.blocks[layer + 1 :]:
        stream = block_output(block(stream, attention_mask=layout, **extra))
    final: Tensor = adapter.decoder.get_submodule(adapter.spec.final_norm)(stream)
    return final[0]


def _refuse_sliding_window(adapter: ModelAdapter, batch: TokenBatch) -> None:
    """Past keys outside a sliding window are hidden from the model's own attention and would be seen here."""
    config = adapter.model.config
    window = getattr(config, "sliding_window", None)
    active = getattr(config, "use_sliding_window", True)
    longest = int(batch.lengths.max())
    if window is not None and active and longest > window:
        raise InputError(
            f"an edit prompt has {longest} tokens in context, more than the model's sliding attention window of "
            f"{window}; shorten the prompt"
        )
