"""What a model is, as digests: its weights, what its configuration makes of them, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers import __version__ as transformers_version

from emendo.models.packed_weights import weight_parts

COMPILED = "_orig_mod"
"""Name under which what `torch.compile` returns keeps the module that it was given."""

_NO_COMPUTATION = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "attn_implementation"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "task_specific_params"),
    *("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "initializer_range", "finetuning_task"),
)
"""Entries of a configuration that a decoder's activations do not depend on, or that other digests cover."""

_SAMPLES = 32
"""Values of a buffer that are looked at."""


def parameters_sha256(model: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter; of few-bit weights, over scales and layout too."""
    digest = hashlib.sha256()
    for name, parameter in named_parameters(model):
        value = parameter.detach().contiguous().cpu()
        digest.update(told(name, value))
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter by its name, in the order of names; few-bit weights in their parts."""
    # What torch.compile returns puts a name of its own before those of the module that it was given.
    named = {name.replace(f"{COMPILED}.", ""): parameter for name, parameter in weight_parts(model)}
    return sorted(named.items())


def told(name: str, parameter: Tensor) -> bytes:
    """What a digest says of a parameter before its bytes."""
    return f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode()


def config_sha256(config: Any) -> str:
    """SHA-256 over the entries of a decoder's configuration that its activations depend on, such as a rope's base.

    Weights alone do not say what a model computes: two that share them can differ in positions, norms or scales.
    """
    told = {name: value for name, value in _settings(config).items() if value is not None}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def config_record(config: Any, model: nn.Module) -> str:
    """What a decoder's configuration says about what it computes, as canonical JSON: a difference can then be named.

    With it go the buffers that are not in the weights: a rope's frequencies are other numbers after ``model.half()``.

    Args:
        config: Of the decoder.
        model: The whole model.
    """
    sampling = GenerationConfig().to_dict()  # how text is sampled says nothing of the model
    settings = {name: value for name, value in _settings(config).items() if name not in sampling}
    record = {"settings": settings, "buffers": _buffers(model), "transformers": transformers_version}
    return json.dumps(record, sort_keys=True, default=str)


def _settings(config: Any) -> dict[str, Any]:
    """The entries of a configuration that say what is computed; None is an entry like any other."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if not name.startswith("_") and name not in _NO_COMPUTATION
    }


def _buffers(model: nn.Module) -> dict[str, list[Any]]:
    """Sketches (dtype, shape, some values) of the floating-point buffers; those of all blocks once, if they are alike.

    Not their bytes: cosines and powers differ in their last bits between processors.
    """
    found: dict[str, list[Any]] = {}
    for full, buffer in sorted(model.named_buffers()):
        if not buffer.is_floating_point() or "original_inv_freq" in full:
            continue
        values = buffer.detach().reshape(-1)
        step = max(1, -(-values.numel() // _SAMPLES))
        shown = [float(f"{value:.6g}") for value in values[::step].double().cpu().tolist()]
        sketch = [str(buffer.dtype).removeprefix("torch."), list(buffer.shape), shown]
        name = full.replace(f"{COMPILED}.", "")
        alike = re.sub(r"\.\d+\.", ".*.", name)
        found[alike if found.setdefault(alike, sketch) == sketch else name] = sketch
    return found


def template_sha256(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's chat template; of nothing where it has none."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over a fast tokenizer's definition and its special tokens.

    Padding and truncation are left out: the tokenizer keeps those of its last call there.
    """
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition.update(padding=None, truncation=None)
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    content = json.dumps([definition, special], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
