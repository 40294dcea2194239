"""Run many texts that begin alike as one prefix tree: every distinct beginning is computed once.

By causality a token's activations depend on the text up to it and nothing else, so two texts share them as far as they
agree. The distinct beginnings of a list of texts form a forest, one node a token. It stands in one row of tokens
(`models.packed`), in depth-first order, and each node attends to itself and its ancestors: the arithmetic of the linear
maps is that of the distinct beginnings, without repetition and without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from emendo.models.editable import EditableModel
from emendo.models.hooks import StopForwardError
from emendo.models.limits import check_ids, check_length
from emendo.models.packed import ScoreRule, alibi_table, packed_attention
from emendo.models.suffix import replay


@dataclass(frozen=True)
class PrefixTree:
    """Distinct beginnings of token sequences, in depth-first order.

    Attributes:
        tokens: Token of each node.
        depths: Position of each node in its sequences, from 0.
        ends: One past the last descendant of each node; a node's subtree is contiguous.
        paths: For each sequence the nodes of its tokens.
    """

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]


def build_prefix_tree(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """The forest of token sequences, each with at least one token; equal sequences share all their nodes."""
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    paths: list[tuple[int, ...]] = [()] * len(sequences)
    path: list[int] = []
    previous: Sequence[int] = ()
    for index in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = sequences[index]
        kept = common_length(previous, sequence)
        for node in path[kept:]:
            ends[node] = len(tokens)
        del path[kept:]
        for depth in range(kept, len(sequence)):
            path.append(len(tokens))
            tokens.append(sequence[depth])
            depths.append(depth)
            ends.append(0)
        paths[index] = tuple(path)
        previous = sequence
    for node in path:
        ends[node] = len(tokens)
    return PrefixTree(tuple(tokens), tuple(depths), tuple(ends), tuple(paths))


def group_by_prefix(sequences: Sequence[Sequence[int]], token_budget: int) -> list[list[int]]:
    """Groups of sequences whose forests hold at most `token_budget` nodes; those that begin alike stay together.

    Groups do not depend on the order of `sequences`. A longer single sequence forms its own group.

    Returns:
        Groups of indices that together hold each index once.
    """
    groups: list[list[int]] = []
    nodes = 0
    previous: tuple[int, ...] = ()
    for index in sorted(range(len(sequences)), key=lambda i: (tuple(sequences[i]), i)):
        sequence = tuple(sequences[index])
        new = len(sequence) - common_length(previous, sequence)
        if groups and nodes + new <= token_budget:
            groups[-1].append(index)
            nodes += new
        else:
            groups.append([index])
            nodes = len(sequence)
        previous = sequence
    return groups


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return n
    return min(len(one), len(other))


@dataclass(frozen=True)
class TreeLayout:
    """Where the nodes of a forest stand and what they see; a `PackedLayout`.

    Args:
        positions: Depth of each node, shape ``[nodes]``.
        ends: One past the last descendant of each node, shape ``[nodes]``.
        alibi: Bias on the score of a key at each absolute position, ``[heads, positions]``; None without alibi.
    """

    positions: Int[Tensor, " nodes"]
    ends: Int[Tensor, " nodes"]
    alibi: Float[Tensor, "heads positions"] | None = None

    def bias(self, rule: ScoreRule, dtype: torch.dtype) -> Float[Tensor, "1 heads nodes nodes"]:
        """What is added to scores: minus infinity where a node is no ancestor, and the alibi; made once a kind.

        The second axis has one entry where all heads share it.
        """
        kind = rule.window, rule.alibi_scale, dtype
        if kind not in self._biases:
            node = torch.arange(len(self.ends), device=self.ends.device)
            # Node j is i or above it where i lies in the contiguous subtree of j.
            seen = (node[None] <= node[:, None]) & (node[:, None] < self.ends[None])
            if rule.window is not None:
                seen &= self.positions[:, None] - self.positions[None] < rule.window
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[None]
            if self.alibi is not None:
                bias = bias + (rule.alibi_scale * self.alibi[:, self.positions]).to(dtype)[:, None]
            self._biases[kind] = bias[None]
        return self._biases[kind]

    @cached_property
    def _biases(self) -> dict[tuple[int | None, float, torch.dtype], Tensor]:
        return {}

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "heads nodes dim"],
        key: Float[Tensor, "kv_heads nodes dim"],
        value: Float[Tensor, "kv_heads nodes dim"],
        rule: ScoreRule,
    ) -> Float[Tensor, "heads nodes dim"]:
        """Attention of every node over itself and its ancestors."""
        bias = self.bias(rule, query.dtype)
        shared = query.shape[0] // key.shape[0]
        k, v = (part.repeat_interleave(shared, dim=0)[None] for part in (key, value))
        if rule.softcap is None and rule.sinks is None:
            return scaled_dot_product_attention(query[None], k, v, attn_mask=bias, scale=rule.scaling)[0]
        scores = rule.capped(query[None] * rule.scaling @ k.transpose(-1, -2)) + bias
        weights = rule.weights(scores, 1, len(query), 1).to(v.dtype)
        return (weights @ v)[0]

    def on(self, device: torch.device) -> TreeLayout:
        """The same layout for blocks on another device; made once for each."""
        if device == self.ends.device:
            return self
        if device not in self._elsewhere:
            alibi = None if self.alibi is None else self.alibi.to(device)
            self._elsewhere[device] = replace(
                self, positions=self.positions.to(device), ends=self.ends.to(device), alibi=alibi
            )
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, TreeLayout]:
        return {}


def tree_hidden(lm: EditableModel, forest: PrefixTree) -> Float[Tensor, "nodes d_model"]:
    """Hidden states after the final norm of every node, ready for `lm.unembed`.

    They are what an ordinary forward pass over each sequence alone gives, up to rounding.

    Args:
        lm: The model.
        forest: Its sequences.

    Raises:
        InputError: A sequence is longer than the model takes, or has a token that its embedding does not have.
    """
    check_length(lm, max(forest.depths) + 1)
    check_ids(lm, forest.tokens)
    device = lm.device
    positions, ends = (torch.tensor(values, device=device) for values in (forest.depths, forest.ends))
    with lm.isolated() as own, torch.no_grad():
        entering = _entering(own, torch.tensor(forest.tokens, device=device), positions)
        layout = TreeLayout(positions, ends, alibi_table(own, max(forest.depths) + 1, entering.dtype, device))
        with packed_attention(own):
            return replay(own, entering, layout, layer=-1).to(device)


def _entering(
    lm: EditableModel, tokens: Int[Tensor, " nodes"], positions: Int[Tensor, " nodes"]
) -> Float[Tensor, "nodes d_model"]:
    """What enters the first block of an isolated model: its own embedding of tokens and positions."""
    found: list[Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).detach())
        raise StopForwardError

    handle = lm.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        lm.decoder(input_ids=tokens[None], position_ids=positions[None], use_cache=False)
    except StopForwardError:
        pass
    finally:
        handle.remove()
    return found[0][0].to(lm.device)
