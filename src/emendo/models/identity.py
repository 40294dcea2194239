"""What a model is, as digests: its weights, what its configuration makes of them, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

COMPILED = "_orig_mod"
"""Name under which what `torch.compile` returns keeps the module that it was given."""

_NO_COMPUTATION = (
    *("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "attn_implementation"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "task_specific_params"),
    *("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "initializer_range", "finetuning_task"),
)
"""Entries of a configuration that a decoder's activations do not depend on, or that other digests cover."""


def parameters_sha256(model: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter."""
    digest = hashlib.sha256()
    # What torch.compile returns puts a name of its own before those of the module that it was given.
    named = {name.replace(f"{COMPILED}.", ""): parameter for name, parameter in model.named_parameters()}
    for name, parameter in sorted(named.items()):
        value = parameter.detach().contiguous().cpu()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_sha256(config: Any) -> str:
    """SHA-256 over the entries of a decoder's configuration that its activations depend on, such as a rope's base.

    Weights alone do not say what a model computes: two that share them can differ in positions, norms or scales.
    """
    entries = config.to_dict()
    told = {
        name: value
        for name, value in entries.items()
        if value is not None and not name.startswith("_") and name not in _NO_COMPUTATION
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 over a fast tokenizer's definition and its special tokens.

    Padding and truncation are left out: the tokenizer keeps those of its last call there.
    """
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition.update(padding=None, truncation=None)
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    content = json.dumps([definition, special], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
