"""What a model must be before it is edited: reachable weights, and an adapter that sees what the model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from emendo.errors import SelfCheckError, UnsupportedModelError
from emendo.models.batch import TokenBatch

if TYPE_CHECKING:
    from emendo.models.adapter import ModelAdapter

SELF_CHECK_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest relative deviation that rounding explains, by dtype of the weights."""


def check_model(adapter: ModelAdapter) -> None:
    """Refuse a model that cannot be edited as it is, in words.

    Raises:
        UnsupportedModelError: Tokenizer, modules or weights are not what editing needs.
        SelfCheckError: A captured key times the weight does not give the captured MLP output.
    """
    if not getattr(adapter.tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"the tokenizer {type(adapter.tokenizer).__name__} gives no character offsets, which Emendo needs to find "
            "the subject's tokens. Load a fast tokenizer (AutoTokenizer, or pip install tokenizers)"
        )
    _refuse_other_modules(adapter)
    _refuse_offloaded(adapter)
    for layer in range(adapter.n_layers):
        _refuse_unreachable_weight(adapter, layer)
    _self_check(adapter)


def _refuse_other_modules(adapter: ModelAdapter) -> None:
    try:
        complete = all(adapter.down_projection(layer) is not None for layer in range(adapter.n_layers))
    except AttributeError:
        complete = False
    if not complete or adapter.model.get_output_embeddings() is None:
        path = f"{adapter.spec.decoder}.{adapter.spec.blocks}.*.{adapter.spec.down_projection}"
        raise UnsupportedModelError(
            f"a {type(adapter.model).__name__} does not have {path} and an unembedding, as expected of "
            f"model_type {adapter.spec.model_type!r}. Pass the causal LM itself (AutoModelForCausalLM), "
            "with adapters merged first (merge_and_unload())"
        )


def _refuse_offloaded(adapter: ModelAdapter) -> None:
    """A weight that is fetched for each forward pass can be neither read, identified nor written in place."""
    away = [name for name, parameter in adapter.model.named_parameters() if parameter.device.type == "meta"]
    if away:
        raise UnsupportedModelError(
            f"{len(away)} weights are offloaded (device 'meta'), {away[0]} for one; expected all of them in memory. "
            "Load the model without offloading: on fewer or larger devices, in a smaller --dtype, or on --device cpu"
        )


def _refuse_unreachable_weight(adapter: ModelAdapter, layer: int) -> None:
    module, name = adapter.down_projection(layer), adapter.module_name(layer)
    weight = getattr(module, "weight", None)
    if not isinstance(module, (nn.Linear, Conv1D)) or weight is None:
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__}, expected a Linear or Conv1D: "
            "wrapped or converted layers cannot be edited. Merge adapters first (merge_and_unload())"
        )
    if not weight.is_floating_point() or weight.dtype not in SELF_CHECK_TOLERANCE:
        raise UnsupportedModelError(
            f"{name} has dtype {weight.dtype}; expected one of "
            f"{', '.join(str(dtype) for dtype in SELF_CHECK_TOLERANCE)} (--dtype float32)"
        )


def _self_check(adapter: ModelAdapter) -> None:
    """Hold key × weight + bias against the MLP output in every layer, on a handful of tokens."""
    ids = [(7 * i + 3) % adapter.vocab_size for i in range(6)]
    layers = range(adapter.n_layers)
    capture = adapter.run(TokenBatch.pad([ids], 0, adapter.device), keys=layers, mlp_out=layers)
    precision = torch.promote_types(adapter.dtype, torch.float32)
    for layer in layers:
        bias = adapter.down_projection(layer).bias
        expected = capture.keys[layer].to(precision) @ adapter.weight(layer).to(precision).T
        expected = expected if bias is None else expected + bias.detach().to(precision)
        found = capture.mlp_out[layer].to(precision)
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
        if not error <= SELF_CHECK_TOLERANCE[adapter.dtype]:
            raise SelfCheckError(
                f"{adapter.module_name(layer)}: key × weight + bias differs from the module's output by "
                f"{error:.2e} relative (expected at most {SELF_CHECK_TOLERANCE[adapter.dtype]:.0e}); "
                "the module is wrapped, quantised or laid out in a way that Emendo does not know"
            )
