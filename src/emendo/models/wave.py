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
from typing import Any

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

    def of(self, layer: int, rows: slice) -> WaveLayout:
        """The same layout for one block and some of the samples."""
        keys, values = self.past[layer]
        return replace(self, samples=len(keys[rows]), past={layer: (keys[rows], values[rows])})

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

        All branches of a sample share one past, so their queries are one wide matrix against it. Keys stand before
        queries: texts are short, and a softmax over few keys is quick only where the queries lie side by side.
        """
        s, v, w, p = self.samples, self.branches, self.width, self.start
        heads, kv, dim = query.shape[0], key.shape[0], query.shape[-1]
        groups = heads // kv
        past_key, past_value = self.past[layer]
        # [samples, kv_heads, branches, width × groups, dim]
        q = (query * rule.scaling).view(kv, groups, s, v, w, dim).permute(2, 0, 3, 4, 1, 5).reshape(s, kv, v, -1, dim)
        k, own_value = (part.view(kv, s, v, w, part.shape[-1]).transpose(0, 1) for part in (key, value))
        scores = q.new_empty(s, kv, p + w, v, w * groups)
        scores[:, :, :p] = (past_key @ q.flatten(2, 3).transpose(-1, -2)).view(s, kv, p, v, w * groups)
        scores[:, :, p:] = (k @ q.transpose(-1, -2)).transpose(2, 3)
        scores = rule.capped(scores).view(s, kv, p + w, v, w, groups)
        if self.alibi is not None:
            bias = self.alibi[:, : p + w].view(kv, groups, p + w).transpose(1, 2)
            scores = scores + (rule.alibi_scale * bias).to(scores.dtype)[:, :, None, None]
        hidden = ~self.seen(rule.window).T[:, None, :, None]
        weights = rule.weights(scores.masked_fill_(hidden, float("-inf")), 1, kv, 1, 1, groups, dim=2).to(value.dtype)
        weights = weights.reshape(s, kv, p + w, v, w * groups)
        out = weights[:, :, p:].permute(0, 1, 3, 4, 2) @ own_value
        if p:
            out += (weights[:, :, :p].flatten(3).transpose(-1, -2) @ past_value).view(out.shape)
        return out.view(s, kv, v, w, groups, -1).permute(1, 4, 0, 2, 3, 5).reshape(heads, s * v * w, -1)


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
        out = own.decoder(input_ids=ids, **own.keeping(cache), return_dict=True)
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
def mlp_given(
    lm: EditableModel, layer: int, given: Bool[Tensor, " tokens"], value: Float[Tensor, "#given d_model"]
) -> Iterator[None]:
    """The down-projection of a block gives `value` at some packed tokens while the context lasts.

    The MLP is not run on them: they are left out where it begins and put back at the output of its down-projection, so
    whatever a family does between that and the residual stream is done to all tokens. Where the MLP is no module of its
    own, or a mixture of experts, it runs on all of them.

    Args:
        lm: The model.
        layer: Index of the block.
        given: The tokens.
        value: What is given at them.
    """
    mlp, run = lm.dense_mlp(layer), torch.nonzero(~given).flatten()
    was_cut = False

    def cut(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal was_cut
        if not arguments:
            return None
        was_cut = True
        hidden, *others = arguments
        return (hidden[:, run.to(hidden.device)], *others)

    def put(out: Tensor) -> Tensor:
        whole = out.new_empty(len(given), out.shape[-1])
        if was_cut:
            whole[run.to(out.device)] = out.reshape(-1, out.shape[-1])
        else:
            whole.copy_(out.reshape(whole.shape))
        whole[given.to(out.device)] = value.to(whole)
        return whole.view(*((1, -1) if out.dim() == 3 else (-1,)), out.shape[-1])

    # A module without tokens is more than a family's code may have been written for.
    handle = mlp.register_forward_pre_hook(cut) if mlp is not None and len(run) else None
    try:
        with changing(lm.down_projection(layer), put):
            yield
    finally:
        if handle is not None:
            handle.remove()


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
