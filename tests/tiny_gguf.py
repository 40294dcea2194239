"""A GGUF file of a tiny Llama, written with the gguf package."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import build_tiny

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def write_tiny_gguf(path: Path, *, blocks: int | None = None, inner: int | None = None, kind: str = "F32") -> Path:
    """Write the file.

    Args:
        path: Where.
        blocks: What it says of its layers; None: their number.
        inner: Width of the MLP, a multiple of 32 for quantised types; None: that of the tests' tiny Llama.
        kind: Type of the edited tensors.
    """
    gguf = pytest.importorskip("gguf")
    lm = build_tiny("llama")
    config, weights = lm.model.config, lm.model.state_dict()
    if inner is not None:
        config = copy.deepcopy(config)
        config.intermediate_size = inner
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = AutoModelForCausalLM.from_config(config).state_dict()
    core = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].__getitem__)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers if blocks is None else blocks)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        names |= {f"blk.{layer}.{short}": f"model.layers.{layer}.{long}" for short, long in LAYER.items()}
    for short, long in names.items():
        values = weights[f"{long}.weight"].float().numpy().astype(np.float32)
        if short.endswith("ffn_down") and kind != "F32":
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(f"{short}.weight", gguf.quants.quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(f"{short}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
