"""Continue many changed copies of one text side by side, each from the token at which it was changed.

Samples are different runs of the same text. A branch is a copy of every sample in which the state of one token was
changed at some layer: nothing before that token differs from the sample's own run, so a branch carries only the tokens
from there on, and reads the keys and values of earlier ones from its sample. Samples, branches and tokens stand in one
row (`models.packed`), without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from emendo.models.editable import EditableModel
from emendo.models.hooks import Capture, block_output, recording
from emendo.models.packed import ScoreRule, cached_past
from emendo.models.suffix import block_arguments


@dataclass(frozen=True)
class WaveLayout:
    """Where the tokens of all branches stand and what they see; a `PackedLayout`.

    Args:
        samples: Number of runs that branches belong to.
        branches: Branches of each sample.
        start: Position of the first token that a branch carries.
        width: Tokens from there to the end of the text.
        past: Keys and values of the samples before `start`, by layer, each ``[samples, kv_heads, start, head_dim]``.
        alibi: Bias on the score of a key at each absolute position, ``[heads, positions]``; None without alibi.
    """

    samples: int
    branches: int
    start: int
    width: int
    past: Mapping[int, tuple[Tensor, Tensor]]
    device: torch.device
    alibi: Float[Tensor, "heads positions"] | None = None

    @cached_property
    def positions(self) -> Int[Tensor, " tokens"]:
        """Absolute position of each packed token in its text."""
        own = torch.arange(self.start, self.start + self.width, device=self.device)
        return own.repeat(self.samples * self.branches)

    def on(self, device: torch.device) -> WaveLayout:
        """The same layout for blocks on another device."""
        if device == self.device:
            return self
        return replace(self, device=device, alibi=None if self.alibi is None else self.alibi.to(device))

    def seen(self, window: int | None) -> Bool[Tensor, "width positions"]:
        """Which positions of its text a token that is carried may attend to."""
        own = torch.arange(self.start, self.start + self.width, device=self.device)[:, None]
        key = torch.arange(self.start + self.width, device=self.device)[None]
        return key <= own if window is None else (key <= own) & (own - key < window)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "heads tokens dim"],
        key: Float[Tensor, "kv_heads tokens dim"],
        value: Float[Tensor, "kv_heads tokens dim"],
        rule: ScoreRule,
    ) -> Float[Tensor, "heads tokens dim"]:
        """Attention of every carried token over its sample's past and its own branch.

        All branches of a sample share one past, so their queries are one tall matrix against it.
        """
        s, v, w, p = self.samples, self.branches, self.width, self.start
        heads, kv, dim = query.shape[0], key.shape[0], query.shape[-1]
        groups = heads // kv
        past_key, past_value = self.past[layer]
        # [samples, kv_heads, groups, branches, width, dim]
        q = (query * rule.scaling).view(kv, groups, s, v, w, dim).permute(2, 0, 1, 3, 4, 5)
        k, own_value = (part.view(kv, s, v, w, part.shape[-1]).permute(1, 2, 0, 3, 4) for part in (key, value))
        before = q.reshape(s, kv, groups * v * w, dim) @ past_key.transpose(-1, -2)
        own = q.permute(0, 3, 1, 2, 4, 5).reshape(s, v, kv, groups * w, dim) @ k.transpose(-1, -2)
        own = own.view(s, v, kv, groups, w, w).permute(0, 2, 3, 1, 4, 5)
        scores = rule.capped(torch.cat([before.view(s, kv, groups, v, w, p), own], dim=-1))
        if self.alibi is not None:
            bias = self.alibi[:, : p + w].reshape(kv, groups, 1, 1, p + w)
            scores = scores + (rule.alibi_scale * bias).to(scores.dtype)
        scores = scores.masked_fill(~self.seen(rule.window), float("-inf"))
        weights = rule.weights(scores, 1, kv, groups, 1, 1).to(value.dtype)
        out = (weights[..., :p].reshape(s, kv, groups * v * w, p) @ past_value).view(s, kv, groups, v, w, -1)
        mine = weights[..., p:].permute(0, 3, 1, 2, 4, 5).reshape(s, v, kv, groups * w, w) @ own_value
        out = out + mine.view(s, v, kv, groups, w, -1).permute(0, 2, 3, 1, 4, 5)
        return out.permute(1, 2, 0, 3, 4, 5).reshape(heads, s * v * w, -1)


def ordinary_run(
    lm: EditableModel, ids: Int[Tensor, "rows length"], *, mlp_out: bool = False, attention_out: bool = False
) -> tuple[Capture, dict[int, tuple[Tensor, Tensor]], Float[Tensor, "rows length d_model"]]:
    """An ordinary forward pass that keeps what branches start from.

    Args:
        lm: The model.
        ids: Texts of one length.
        mlp_out: Keep the outputs of all down-projections.
        attention_out: Keep what every attention adds to the residual stream.

    Returns:
        The residual stream after every block and before the first, and what was asked for; keys and values by layer;
        hidden states after the final norm.
    """
    # Without a configuration the cache keeps every position; a sliding layer's would drop the first ones.
    capture, cache, every = Capture(), DynamicCache(), range(lm.n_layers)
    written, attended = every if mlp_out else (), every if attention_out else ()
    with (
        lm.isolated() as own,
        torch.no_grad(),
        recording(own, capture, mlp_out=written, resid=every, entering=[0], attention_out=attended),
    ):
        out = own.decoder(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True)
    past = {layer: cached_past(lm, cache, layer) for layer in every}
    return capture, past, out.last_hidden_state.to(lm.device)


def wave_step(
    lm: EditableModel, layer: int, stream: Float[Tensor, "samples branches width d_model"], layout: WaveLayout
) -> Float[Tensor, "samples branches width d_model"]:
    """One block over all branches; to be called inside `packed_attention(lm)`.

    Args:
        lm: The model.
        layer: Index of the block.
        stream: What enters it.
        layout: Where its tokens stand; the number of branches is that of `stream`.
    """
    here = replace(layout, branches=stream.shape[1])
    hidden = stream.reshape(-1, stream.shape[-1]).to(lm.block_device(layer))
    (arguments,) = block_arguments(lm, hidden, here, [layer])
    return block_output(lm.blocks[layer](hidden[None], **arguments))[0].view(stream.shape)


@contextmanager
def changing(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A module gives ``change(output)`` while the context lasts; of a tuple its first part is changed."""

    def hook(_module: nn.Module, _args: object, out: object) -> object:
        changed = change(block_output(out))
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
