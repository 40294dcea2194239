"""Architectures that models of a world are trained in: each at the same small size, as its family has it.

A new family is one entry: what its configuration calls the sizes, and what makes it the family that it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

WIDTH, BLOCKS, HEADS, INNER = 64, 6, 4, 256
"""d_model, blocks, attention heads, and d_in of the edited maps."""

LENGTH = 128
"""Longest text, in tokens; rows of the training are as long, so that every position has been trained."""

_LLAMA: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}
_GPT: Mapping[str, Any] = {
    "n_embd": WIDTH,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    "n_positions": LENGTH,
    "n_inner": INNER,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
_EXPERTS = {"num_experts_per_tok": 2}

FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": _LLAMA,
        "gpt2": _GPT,
        "gptj": {**_GPT, "rotary_dim": 16},
        "gpt_neox": {**_LLAMA, "hidden_act": "gelu"},
        "qwen3": {**_LLAMA, "head_dim": WIDTH // HEADS},
        "gemma3_text": {
            **_LLAMA,
            "head_dim": WIDTH // HEADS,
            "query_pre_attn_scalar": WIDTH // HEADS,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
        },
        "olmo2": _LLAMA,
        "phi": _LLAMA,
        "bloom": {
            "hidden_size": WIDTH,
            "n_layer": BLOCKS,
            "n_head": HEADS,
            "seq_length": LENGTH,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "falcon": {
            "hidden_size": WIDTH,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": INNER,
            "max_position_embeddings": LENGTH,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
        "granite": {
            **_LLAMA,
            "embedding_multiplier": 3.0,
            "attention_multiplier": (WIDTH // HEADS) ** -0.5,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        "qwen3_moe": {
            **_LLAMA,
            "head_dim": WIDTH // HEADS,
            "moe_intermediate_size": INNER // 2,
            "num_experts": 4,
            "norm_topk_prob": True,
            **_EXPERTS,
        },
        "mixtral": {**_LLAMA, "intermediate_size": INNER // 2, "num_local_experts": 4, **_EXPERTS},
    }
)
"""Settings by `config.model_type`."""
