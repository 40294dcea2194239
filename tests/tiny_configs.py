"""Settings of tiny models of every supported family, their further shapes, and multimodal models around them."""

from __future__ import annotations

from typing import Any

LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_GPT_LIKE = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
_GEMMA_LIKE = {**LLAMA_LIKE, "head_dim": 8}
_BLOOM = {"hidden_size": 32, "n_layer": 4, "n_head": 4, "seq_length": 128, "initializer_range": 0.2}
_FALCON = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 32,
    "init_std": 0.2,
}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": _GEMMA_LIKE,
    "phi": LLAMA_LIKE,
    "phi3": LLAMA_LIKE,
    "gemma": _GEMMA_LIKE,
    "gemma2": {
        **_GEMMA_LIKE,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.5,
        "sliding_window": 64,
    },
    "gemma3_text": {
        **_GEMMA_LIKE,
        "query_pre_attn_scalar": 20,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "final_logit_softcapping": 1.5,
    },
    "olmo2": LLAMA_LIKE,
    "granite": {
        **LLAMA_LIKE,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.5,
    },
    "cohere": {**LLAMA_LIKE, "logit_scale": 2.0, "use_qk_norm": True},
    "stablelm": LLAMA_LIKE,
    "starcoder2": LLAMA_LIKE,
    "opt": {**_OPT, "activation_function": "gelu"},  # a ReLU leaves some keys of a tiny model always zero
    "gpt2": {**_GPT_LIKE, "n_inner": 48},
    "gpt2_square": {**_GPT_LIKE, "n_inner": 32},
    "gptj": {**_GPT_LIKE, "n_inner": 48, "rotary_dim": 4},
    "gpt_neox": {k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"},
    "bloom": _BLOOM,
    "falcon": _FALCON,
}
"""Settings of a tiny model of every family, by `config.model_type`; `gpt2_square` has d_in = d_out, where layouts
cannot be told by shape.
"""

_SLIDING: dict[str, object] = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2}

MORE_FAMILIES: dict[str, dict[str, object]] = {
    "olmo": {**LLAMA_LIKE, "clip_qkv": 3.0},
    "olmo3": {**LLAMA_LIKE, **_SLIDING},
    "cohere2": {**LLAMA_LIKE, "logit_scale": 2.0, **_SLIDING},
    "glm": {**_GEMMA_LIKE, "attention_bias": True},
    "glm4": _GEMMA_LIKE,
    "smollm3": {**LLAMA_LIKE, "no_rope_layers": [1, 0, 1, 0]},
    "exaone4": {**LLAMA_LIKE, **_SLIDING},
    "nemotron": LLAMA_LIKE,
    "ministral": {**_GEMMA_LIKE, **_SLIDING},
    "ministral3": _GEMMA_LIKE,
    "gpt_bigcode": {**_GPT_LIKE, "n_inner": 48},
    "codegen": {**_GPT_LIKE, "n_inner": 48, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    },
}
"""Families that the contract tests hold to their model, and no other test runs over: a row differs from one in
`FAMILIES` in what those tests look at, and the suite stays quick.
"""

_ROUTED: dict[str, object] = {**LLAMA_LIKE, "intermediate_size": 16, "num_experts_per_tok": 2}
_PARTLY_ROUTED: dict[str, object] = {
    **LLAMA_LIKE,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}

MIXTURES: dict[str, dict[str, object]] = {
    "qwen2_moe": {
        **LLAMA_LIKE,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **_GEMMA_LIKE,
        "moe_intermediate_size": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [3],
    },
    "mixtral": {**_ROUTED, "num_local_experts": 6},
    "olmoe": {**_ROUTED, "num_experts": 6},
    "gpt_oss": {
        **_ROUTED,
        "head_dim": 8,
        "num_local_experts": 6,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v3": {
        **_PARTLY_ROUTED,
        "num_key_value_heads": 4,
        "n_routed_experts": 6,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "routed_scaling_factor": 1.5,
    },
    "glm4_moe": {
        **_PARTLY_ROUTED,
        "head_dim": 8,
        "n_routed_experts": 6,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
    },
    "granitemoe": {
        **_ROUTED,
        "num_local_experts": 6,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.5,
    },
    "phimoe": {**_ROUTED, "num_local_experts": 6},
    "ernie4_5_moe": {
        **LLAMA_LIKE,
        "moe_intermediate_size": 16,
        "moe_num_experts": 6,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "dots1": {
        **_PARTLY_ROUTED,
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "sliding_window": 64,
        "max_window_layers": 2,
    },
    "hunyuan_v1_moe": {**_ROUTED, "head_dim": 8, "num_experts": 6, "moe_topk": 2},
}
"""Mixtures of experts: most blocks have six experts, of which a token takes two."""

ROWS: dict[str, dict[str, object]] = {**FAMILIES, **MORE_FAMILIES, **MIXTURES}
"""A tiny model of every row of the table."""

VARIANTS: dict[str, dict[str, object]] = {
    "opt_post_norm": {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "falcon_alibi": {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "falcon_new": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "stablelm_parallel": {**LLAMA_LIKE, "use_parallel_residual": True, "qk_layernorm": True},
    "gpt_neox_sequential": {**FAMILIES["gpt_neox"], "use_parallel_residual": False},
    "bloom_post_norm": {**_BLOOM, "apply_residual_connection_post_layernorm": True, "n_head": 6, "hidden_size": 48},
    "phi_qk_norm": {**LLAMA_LIKE, "qk_layernorm": True},
    "gpt_bigcode_heads": {**MORE_FAMILIES["gpt_bigcode"], "multi_query": False},
    "ministral3_scaled": {
        **_GEMMA_LIKE,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.5,  # of queries, by their position
            "max_position_embeddings": 4,
        },
    },
    "gemma3_text_local_rope": {
        **FAMILIES["gemma3_text"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    },
}
"""Further shapes of a family: what its other models set in their configuration."""

_CLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_CLIP, "image_size": 8, "patch_size": 4}
_SIGLIP = {**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
_QWEN_VISION = {"depth": 1, "num_heads": 2, "patch_size": 2, "fullatt_block_indexes": [0]}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_IMAGE = {"image_token_id": 2, "image_token_index": 2, "video_token_id": 3, "video_token_index": 3}
_LLAVA = {"vision_config": {**_VISION, "model_type": "clip_vision_model"}, "text_model_type": "llama", **_IMAGE}

WRAPPED: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "llava_next": {**_LLAVA, "text_model_type": "granite"},
    "llava_next_video": _LLAVA,
    "vipllava": {**_LLAVA, "vision_feature_layers": [-1]},
    "video_llava": _LLAVA,
    "llava_onevision": {"vision_config": _SIGLIP, "text_model_type": "qwen2", **_IMAGE},
    "fast_vlm": {"vision_config": _SIGLIP, "text_model_type": "qwen2", **_IMAGE},
    "aya_vision": {"vision_config": _SIGLIP, "text_model_type": "cohere", **_IMAGE},
    "aya_vision/cohere2": {"vision_config": _SIGLIP, "text_model_type": "cohere2", **_IMAGE},
    "cohere2_vision": {
        "vision_config": _SIGLIP,
        "downsample_factor": 2,
        "alignment_intermediate_size": 16,
        "text_model_type": "cohere2",
        **_IMAGE,
    },
    "gemma3": {"vision_config": _SIGLIP, "text_model_type": "gemma3_text", "mm_tokens_per_image": 4, **_IMAGE},
    "mistral3": {"vision_config": {**_VISION, "model_type": "pixtral"}, "text_model_type": "mistral", **_IMAGE},
    "mistral3/ministral3": {
        "vision_config": {**_VISION, "model_type": "pixtral"},
        "text_model_type": "ministral3",
        **_IMAGE,
    },
    "internvl": {
        "vision_config": {**_CLIP, "image_size": [8, 8], "patch_size": [4, 4]},
        "text_model_type": "qwen2",
        **_IMAGE,
    },
    "got_ocr2": {"vision_config": {**_VISION, "output_channels": 8}, "text_model_type": "qwen2", **_IMAGE},
    "qwen2_vl": {
        "vision_config": {**_QWEN_VISION, "embed_dim": 16, "hidden_size": 32},
        "text_model_type": "qwen2_vl_text",
        **_IMAGE,
    },
    "qwen2_5_vl": {
        "vision_config": {**_QWEN_VISION, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 16},
        "text_model_type": "qwen2_5_vl_text",
        **_IMAGE,
    },
    "idefics2": {"vision_config": _VISION, "text_model_type": "mistral", **_IMAGE},
    "idefics3": {"vision_config": _VISION, "text_model_type": "llama", **_IMAGE},
    "smolvlm": {"vision_config": _VISION, "text_model_type": "llama", **_IMAGE},
    "lighton_ocr": {"vision_config": {**_VISION, "model_type": "pixtral"}, "text_model_type": "qwen3", **_IMAGE},
    "qwen3_vl": {
        "vision_config": {
            **_QWEN_VISION,
            "hidden_size": 16,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
            "intermediate_size": 16,
        },
        "text_model_type": "qwen3_vl_text",
        **_IMAGE,
    },
}
"""Settings of tiny multimodal models around a family's text decoder, by `config.model_type`, and behind a stroke the
decoder where there are several.
"""

FLOAT32_ATTENTION = ("bloom", "bloom_post_norm", "codegen", "gemma2", "gpt_neo", "gptj")
FLOAT32_ATTENTION += ("deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss")
"""Families whose own attention computes scores or weights in float32, whatever the dtype of the weights, or whose
router does; gpt-oss has no other attention than its own.
"""

NOT_LINEAR = ("exaone4", "gemma2", "gemma3", "gemma3_text", "gemma3_text_local_rope", "glm4")
NOT_LINEAR += ("granite", "granitemoe", "llava_next", "olmo2", "olmo3", "opt_post_norm")
"""Models where a vector at the MLP's output does not enter the residual stream as it is: normed or scaled."""
