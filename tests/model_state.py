"""Everything about a live model that a caller could notice afterwards, as one comparable value."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emendo.models import EditableModel

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def model_state(lm: EditableModel) -> dict[str, Any]:
    """Weights bit by bit, flags, hooks, attributes, configuration, tokenizer settings and all random streams."""
    model, tokenizer = lm.model, lm.tokenizer
    modules = list(model.named_modules())
    return {
        "weights": {name: _bits(value) for name, value in model.state_dict(keep_vars=True).items()},
        "buffers": {name: _bits(value) for name, value in model.named_buffers()},
        "storage": {name: value.data_ptr() for name, value in model.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "grad": {name: value.grad is None for name, value in model.named_parameters()},
        "training": {name: module.training for name, module in modules},
        "hooks": {name: [len(getattr(module, hook)) for hook in _HOOKS] for name, module in modules},
        "attributes": {name: _attributes(module) for name, module in modules},
        "config": model.config.to_dict(),
        "attention": {name: _attention(module) for name, module in modules},
        "generation": model.generation_config.to_dict(),
        "tokenizer": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token, len(tokenizer)),
        "grad_enabled": torch.is_grad_enabled(),
        "torch_rng": torch.get_rng_state().numpy().tobytes(),
        "python_rng": random.getstate(),
        "numpy_rng": np.random.get_state()[1].tobytes(),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the parts that differ."""
    assert before.keys() == after.keys()
    return [name for name in before if before[name] != after[name]]


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _attributes(module: nn.Module) -> set[str]:
    """Names of a module's own attributes; transformers marks a model for output capturing on its own account."""
    return set(vars(module)) - {"_output_capturing_hooks_installed"}


def _attention(module: nn.Module) -> str:
    return str(getattr(getattr(module, "config", None), "_attn_implementation", ""))
