"""Attention over many prompts that stand packed in one row of tokens, without padding: the seam and its first layout.

Norms and linear maps never see padding. Only attention must know which token belongs to which prompt; a block hands
its `attention_mask` unchanged to its attention, so the layout travels in that argument and nothing is global.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

from emendo.models.editable import EditableModel

PACKED_ATTENTION = "emendo_packed_suffix"
"""Name under which transformers' attention interface finds `_packed_attention`."""


@dataclass(frozen=True)
class ScoreRule:
    """What a family does to the scores of its attention, besides the layout.

    Args:
        scaling: Factor on the product of query and key.
        softcap: Bound c of a scaled score, ``c tanh(score / c)``; None without.
        alibi_scale: Factor on the alibi bias.
        window: A token sees itself and the ``window - 1`` positions before it; None without a sliding window.
        sinks: A score of each head that takes part in the softmax and belongs to no key; None without.
    """

    scaling: float
    softcap: float | None = None
    alibi_scale: float = 1.0
    window: int | None = None
    sinks: Float[Tensor, " heads"] | None = None

    def capped(self, scores: Tensor) -> Tensor:
        """Scores within the bound, where there is one."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def weights(self, scores: Tensor, *heads: int, dim: int = -1) -> Tensor:
        """Softmax over the keys, in float32 or better, with what the sinks take left out.

        Args:
            scores: Any, of all heads.
            heads: Shape in which the heads' sinks stand against the other dimensions.
            dim: The dimension of the keys.
        """
        keys = scores.shape[dim]
        if self.sinks is not None:
            taken = self.sinks.to(scores).view(*heads).unsqueeze(dim)
            taken = taken.expand(*(1 if at == dim % scores.dim() else n for at, n in enumerate(scores.shape)))
            scores = torch.cat([scores, taken], dim=dim)
        weights = scores.softmax(dim=dim, dtype=torch.promote_types(scores.dtype, torch.float32))
        return weights if self.sinks is None else weights.narrow(dim, 0, keys)


class PackedLayout(Protocol):
    """Tokens of several texts in one row: where they stand and what they see."""

    @property
    def positions(self) -> Int[Tensor, " tokens"]:
        """Absolute position of each packed token in its text."""
        ...

    @property
    def alibi(self) -> Float[Tensor, "heads positions"] | None:
        """Bias on the score of a key at each absolute position; None without alibi."""
        ...

    def on(self, device: torch.device) -> PackedLayout:
        """The same layout for blocks on another device."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """Attention of ``[heads, tokens, dim]`` queries, of the same shape."""
        ...


@dataclass(frozen=True)
class SuffixLayout:
    """Which prompt and position every packed token stands at, and the constant past of each prompt.

    Args:
        rows: Prompt of each packed token, ascending, shape ``[tokens]``.
        steps: Position of each packed token within its suffix, from 0, shape ``[tokens]``.
        positions: Absolute position of each packed token in its prompt, shape ``[tokens]``.
        n_rows: Number of prompts.
        width: Longest suffix.
        past: Keys and values before the suffix by layer, each ``[n_rows, kv_heads, past, head_dim]``, on the
            device of the layer.
        past_mask: True where a past position is real, shape ``[n_rows, past]``.
        alibi: Bias on the score of a key at each absolute position, ``[heads, positions]``; None without alibi.
    """

    rows: Int[Tensor, " tokens"]
    steps: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    n_rows: int
    width: int
    past: dict[int, tuple[Tensor, Tensor]]
    past_mask: Bool[Tensor, "n_rows past"]
    alibi: Float[Tensor, "heads positions"] | None = None

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

    @cached_property
    def biases(self) -> tuple[Float[Tensor, "1 heads 1 past"], Float[Tensor, "n_rows heads 1 width"]]:
        """Alibi of past and of suffix keys, from their absolute positions."""
        assert self.alibi is not None
        # A suffix may begin at any real past position's successor, so positions of padding run past the table.
        starts = self.past_mask.sum(dim=1)
        places = (starts[:, None] + torch.arange(self.width, device=starts.device)).clamp_max(self.alibi.shape[1] - 1)
        return self.alibi[None, :, None, : self.past_mask.shape[1]], self.alibi[:, places].transpose(0, 1)[:, :, None]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "heads tokens dim"],
        key: Float[Tensor, "kv_heads tokens dim"],
        value: Float[Tensor, "kv_heads tokens value_dim"],
        rule: ScoreRule,
    ) -> Float[Tensor, "heads tokens value_dim"]:
        """Attention of packed suffix tokens over their prompt's past and their own suffix.

        Past and suffix are two products under one softmax, so the past is neither copied nor differentiated.
        """
        past_keys, past_values = self.past[layer]
        kv_heads, dim = past_keys.shape[1], query.shape[-1]
        q = self.unpack(query) * rule.scaling
        k, v = self.unpack(key), self.unpack(value)
        # Query heads that share one key head form one taller matrix: [rows, kv_heads, groups × width, dim].
        n_rows, heads, width = q.shape[:3]
        q = q.reshape(n_rows, kv_heads, heads // kv_heads * width, dim)
        scores = [rule.capped(q @ past_keys.transpose(-1, -2)), rule.capped(q @ k.transpose(-1, -2))]
        if self.alibi is not None:
            # One bias a head: the taller matrix is taken apart for it.
            scores = [
                (part.view(n_rows, heads, width, part.shape[-1]) + rule.alibi_scale * bias).view(part.shape)
                for part, bias in zip(scores, self.biases, strict=True)
            ]
        see_past, see_suffix = self.allowed
        see_suffix = see_suffix.repeat(1, 1, heads // kv_heads, 1)
        n_past = past_keys.shape[2]
        joined = torch.cat(
            [
                scores[0].masked_fill(~see_past, float("-inf")),
                scores[1].masked_fill(~see_suffix, float("-inf")),
            ],
            dim=-1,
        )
        grouped = joined.view(n_rows, kv_heads, heads // kv_heads, width, joined.shape[-1])
        weights = rule.weights(grouped, 1, kv_heads, heads // kv_heads, 1).reshape(joined.shape).to(v.dtype)
        out = weights[..., :n_past] @ past_values + weights[..., n_past:] @ v
        # Values may be narrower than keys.
        return self.pack(out.reshape(n_rows, heads, width, v.shape[-1])).transpose(0, 1)

    def on(self, device: torch.device) -> SuffixLayout:
        """The same layout for blocks on another device; made once for each."""
        if device == self.rows.device:
            return self
        if device not in self._elsewhere:
            moved = {name: getattr(self, name).to(device) for name in ("rows", "steps", "positions", "past_mask")}
            alibi = None if self.alibi is None else self.alibi.to(device)
            self._elsewhere[device] = replace(self, **moved, alibi=alibi)
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, SuffixLayout]:
        return {}


def cached_past(lm: EditableModel, cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that a forward pass has kept, each ``[rows, kv_heads, positions, dim]``.

    Latent attention keeps what they are made from, and its module makes them.
    """
    kept, attention = cache.layers[layer], lm.blocks[layer].get_submodule(lm.spec.attention)
    expand: Any = getattr(attention, "expand_kv", None)
    with torch.no_grad():
        return (kept.keys, kept.values) if expand is None else expand(kept.keys, kept.values)


def alibi_table(
    lm: EditableModel, length: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "heads positions"] | None:
    """The model's own alibi bias of each head at each position of a text; None for a model without."""
    if not lm.spec.alibi:
        return None
    decoder: Any = lm.decoder
    modeling: Any = inspect.getmodule(type(decoder))
    return modeling.build_alibi_tensor(
        torch.ones(1, length, dtype=torch.long, device=device), decoder.num_heads, dtype
    )[:, 0]


def _packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens dim"],
    key: Float[Tensor, "1 kv_heads tokens dim"],
    value: Float[Tensor, "1 kv_heads tokens dim"],
    attention_mask: PackedLayout,
    scaling: float | None = None,
    softcap: float | None = None,
    alibi_scale: float = 1.0,
    sliding_window: int | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 tokens heads dim"], None]:
    """Attention of packed tokens as their layout says, in the shape of transformers' attention functions."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = ScoreRule(scaling, softcap, alibi_scale, sliding_window, s_aux)
    layer: Any = module.layer_idx
    return attention_mask.attend(layer, query[0], key[0], value[0], scores).transpose(0, 1)[None], None


# transformers looks attention functions up by name; registering one is how a model is given another.
AttentionInterface.register(PACKED_ATTENTION, _packed_attention)


def _gptj_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: PackedLayout
) -> tuple[Tensor, None]:
    """`_packed_attention` in the shape of GPT-J's own `_attn` method, which returns heads before tokens."""
    out, _ = _packed_attention(module, query, key, value, attention_mask)
    return out.transpose(1, 2), None


def _gpt_neo_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: PackedLayout
) -> tuple[Tensor, None]:
    """GPT-Neo's own `_attn` method: its scores are not scaled, and its local layers slide."""
    window = module.config.window_size if module.attention_type == "local" else None
    out = attention_mask.attend(module.layer_id, query[0], key[0], value[0], ScoreRule(1.0, window=window))
    return out[None], None


def _bloom_attention(
    module: Any, hidden_states: Tensor, residual: Tensor, *, attention_mask: PackedLayout, **_: Any
) -> tuple[Tensor, None]:
    """BLOOM's attention module, which adds the residual stream itself."""
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    out, _none = _packed_attention(module, query, key, value, attention_mask, scaling=module.inv_norm_factor)
    return module.dense(out.flatten(2)) + residual, None


def _falcon_attention(
    module: Any,
    hidden_states: Tensor,
    *,
    attention_mask: PackedLayout,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """Falcon's attention module, with rotary positions or alibi."""
    split = module._split_heads(module.query_key_value(hidden_states))
    query, key, value = (part.transpose(1, 2) for part in split)
    if attention_mask.alibi is None:
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    scale = module.inv_norm_factor
    out, _none = _packed_attention(module, query, key, value, attention_mask, scaling=scale, alibi_scale=scale)
    return module.dense(out.flatten(2)), None


SEAMS: Mapping[str, tuple[str, Callable[..., Any]]] = MappingProxyType(
    {
        "gptj": ("_attn", _gptj_attention),
        "gpt_neo": ("_attn", _gpt_neo_attention),
        "bloom": ("forward", _bloom_attention),
        "falcon": ("forward", _falcon_attention),
    }
)
"""Attention modules that do not ask transformers' attention interface: the method to replace, and by what."""


@contextmanager
def packed_attention(lm: EditableModel) -> Iterator[None]:
    """Blocks of an isolated model attend through packed suffixes while the context lasts."""
    attentions = [block.get_submodule(lm.spec.attention) for block in lm.blocks]
    if lm.spec.attention_seam == "interface":
        with _through_interface(attentions):
            yield
    else:
        with _replaced(attentions, *SEAMS[lm.spec.attention_seam]):
            yield


@contextmanager
def _through_interface(attentions: list[Any]) -> Iterator[None]:
    configs = list({id(attention.config): attention.config for attention in attentions}.values())
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = PACKED_ATTENTION
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation_internal = value


@contextmanager
def _replaced(attentions: list[Any], name: str, function: Callable[..., Any]) -> Iterator[None]:
    # A dispatched model has a `forward` of its own on the instance, which comes back.
    before = [attention.__dict__.get(name) for attention in attentions]
    try:
        for attention in attentions:
            attention.__dict__[name] = partial(function, attention)
        yield
    finally:
        for attention, own in zip(attentions, before, strict=True):
            attention.__dict__.pop(name, None)
            if own is not None:
                attention.__dict__[name] = own
