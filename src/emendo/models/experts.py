"""Mixtures of experts as one linear map: what they compute is W φ, with every expert's gated key in one long key.

A token that is routed to some of E experts gets ``y = Σₑ gₑ Wₑ kₑ``: the matrix ``W = [W₁ … W_E]`` times the stacked
key ``φ = [g₁k₁ … g_E k_E]``, whose parts are zero where the token does not go. Everything that edits a dense layer by
its keys therefore edits a mixture by its stacked keys.

Keys are recorded by an experts function of our own, which transformers' experts interface finds by its name. It is
asked for in a copy of the configuration that one module of an isolated model holds: no other module, no other thread
and no other model computes with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.integrations.moe import ExpertsInterface

RECORDING = "emendo_recording"
"""Name under which transformers' experts interface finds `_recording`."""

_SINK = "_emendo_sink"


@dataclass(frozen=True)
class RoutedKeys:
    """Keys of a mixture as tokens are routed: k experts a token instead of all of them.

    Attributes:
        keys: Inputs of the experts' down-projections, ``[*tokens, k, width]``.
        gates: What each expert's output is multiplied with, ``[*tokens, k]``.
        experts: Which experts they are, ``[*tokens, k]``.
        n_experts: E.
    """

    keys: Float[Tensor, "*tokens k width"]
    gates: Float[Tensor, "*tokens k"]
    experts: Int[Tensor, "*tokens k"]
    n_experts: int

    def __getitem__(self, index: Any) -> RoutedKeys:
        """Some of the tokens, by any index into the leading dimensions."""
        return RoutedKeys(self.keys[index], self.gates[index], self.experts[index], self.n_experts)

    def shaped(self, *tokens: int) -> RoutedKeys:
        """The same tokens in other leading dimensions."""
        k, width = self.keys.shape[-2:]
        gates, experts = (part.reshape(*tokens, k) for part in (self.gates, self.experts))
        return RoutedKeys(self.keys.reshape(*tokens, k, width), gates, experts, self.n_experts)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.keys.device

    def gated(self) -> Float[Tensor, "*tokens k width"]:
        """Each expert's part of the stacked key, g k, in float32 or better: a product in half precision loses bits."""
        dtype = torch.promote_types(torch.promote_types(self.keys.dtype, self.gates.dtype), torch.float32)
        return self.gates.to(dtype)[..., None] * self.keys.to(dtype)

    def stacked(self) -> Float[Tensor, "*tokens d_in"]:
        """φ of every token: E times as wide as one expert's key."""
        parts = self.gated()
        k, width = parts.shape[-2:]
        flat = parts.new_zeros(self.experts[..., 0].numel(), self.n_experts, width)
        place = self.experts.reshape(-1, k, 1).expand(-1, -1, width)
        flat.scatter_add_(1, place, parts.reshape(-1, k, width))
        return flat.view(*self.experts.shape[:-1], self.n_experts * width)

    def dot(self, rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "*tokens n"]:
        """The product of every stacked key with rows of stacked width, without stacking; differentiable in the keys."""
        parts, width = self.gated().to(rows), self.keys.shape[-1]
        k = parts.shape[-2]
        flat, experts = parts.reshape(-1, k, width), self.experts.reshape(-1, k)
        blocks = rows.view(len(rows), self.n_experts, width)
        found = flat.new_zeros(len(flat), len(rows))
        for expert in experts.unique().tolist():
            tokens, places = torch.where(experts == expert)
            found = found.index_add(0, tokens, flat[tokens, places] @ blocks[:, expert].T)
        return found.view(*self.experts.shape[:-1], len(rows))

    def detached(self) -> RoutedKeys:
        """Without the graph that they were computed in."""
        return RoutedKeys(self.keys.detach(), self.gates.detach(), self.experts, self.n_experts)

    def by_expert(self) -> Iterator[tuple[int, Float[Tensor, "n width"]]]:
        """The gated keys of each expert that any token reaches, tokens in their order."""
        parts, experts = self.gated().flatten(0, -2), self.experts.flatten()
        for expert in experts.unique().tolist():
            yield int(expert), parts[experts == expert]

    def bias(self, biases: Float[Tensor, "experts d_out"]) -> Float[Tensor, "*tokens d_out"]:
        """What biases of the experts add to the output: Σₑ gₑ bₑ."""
        return (self.gates[..., None] * biases[self.experts]).sum(dim=-2)


def is_mixture(module: Any) -> bool:
    """Whether a module holds experts in the way of transformers' experts interface."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "down_proj", "num_experts"))


@contextmanager
def recording_experts(sinks: Mapping[Any, Callable[[RoutedKeys], None]]) -> Iterator[None]:
    """Modules of an isolated model hand their keys on in every forward pass inside the context.

    Args:
        sinks: What takes the keys ``[tokens, ·]`` of each module, as they stand in the graph of the pass.
    """
    modules: list[Any] = list(sinks)
    configs = [module.config for module in modules]
    try:
        for module, sink in sinks.items():
            module.__dict__[_SINK] = sink
            own = copy.copy(module.config)
            own._experts_implementation_internal = RECORDING
            module.config = own
        yield
    finally:
        for module, config in zip(modules, configs, strict=True):
            module.config = config
            module.__dict__.pop(_SINK, None)


def _recording(
    self: Any,
    hidden_states: Float[Tensor, "tokens d_model"],
    top_k_index: Int[Tensor, "tokens k"],
    top_k_weights: Float[Tensor, "tokens k"],
) -> Float[Tensor, "tokens d_model"]:
    """The experts' output, expert by expert, and their keys to whoever asked for them."""
    tokens, k = top_k_index.shape
    width = self.down_proj.shape[1 if self.is_transposed else 2]
    keys = hidden_states.new_zeros(tokens, k, width)
    out = hidden_states.new_zeros(tokens, k, hidden_states.shape[-1])
    for expert in top_k_index.unique().tolist():
        at, place = torch.where(top_k_index == expert)
        own = _key(self, hidden_states[at], expert)
        keys[at, place] = own
        out[at, place] = _down(self, own, expert)
    self.__dict__[_SINK](RoutedKeys(keys, top_k_weights, top_k_index.detach(), self.num_experts))
    return (out * top_k_weights[..., None]).sum(dim=1).to(hidden_states.dtype)


def _key(module: Any, hidden: Tensor, expert: int) -> Tensor:
    name = "gate_up_proj" if module.has_gate else "up_proj"
    weight: Tensor = getattr(module, name)[expert]
    inner = hidden @ (weight if module.is_transposed else weight.T)
    if module.has_bias:
        inner = inner + getattr(module, f"{name}_bias")[expert]
    key: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return key


def _down(module: Any, key: Tensor, expert: int) -> Tensor:
    weight: Tensor = module.down_proj[expert]
    out = key @ (weight if module.is_transposed else weight.T)
    return out + module.down_proj_bias[expert] if module.has_bias else out


# transformers looks experts functions up by name; registering one is how a module is given another.
ExpertsInterface.register(RECORDING, _recording)
