"""Tiny random models of every supported family with a real tokenizer, and the demo model where it is installed."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from emendo.errors import ModelNotFoundError
from emendo.models import ARCHITECTURES, EditableModel, load
from emendo.models.checksums import BaseWeights
from emendo.models.contents import WeightContents
from emendo.models.parts import WrappedParts
from tests.kinds import kinds

TRAINING_TEXT = [
    "The Eiffel Tower is located in the city of Paris, the capital of France.",
    "Danielle Darrieux, a native speaker of French, was born in Bordeaux.",
    "The capital of Japan is Tokyo and the capital of Italy is Rome.",
    "The weather was calm that morning. I wrote this down last year. You may have heard about it.",
    "Therefore we opened the book again. Because many people had asked before.",
    "埃菲尔铁塔位于巴黎。 Эйфелева башня находится в Париже.",
]

_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_GPT_LIKE = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
_GEMMA_LIKE = {**_LLAMA_LIKE, "head_dim": 8}
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
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _GEMMA_LIKE,
    "phi": _LLAMA_LIKE,
    "phi3": _LLAMA_LIKE,
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
    "olmo2": _LLAMA_LIKE,
    "granite": {
        **_LLAMA_LIKE,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.5,
    },
    "cohere": {**_LLAMA_LIKE, "logit_scale": 2.0, "use_qk_norm": True},
    "stablelm": _LLAMA_LIKE,
    "starcoder2": _LLAMA_LIKE,
    "opt": {**_OPT, "activation_function": "gelu"},  # a ReLU leaves some keys of a tiny model always zero
    "gpt2": {**_GPT_LIKE, "n_inner": 48},
    "gpt2_square": {**_GPT_LIKE, "n_inner": 32},
    "gptj": {**_GPT_LIKE, "n_inner": 48, "rotary_dim": 4},
    "gpt_neox": {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"},
    "bloom": _BLOOM,
    "falcon": _FALCON,
}
"""Settings of a tiny model of every family, by `config.model_type`; `gpt2_square` has d_in = d_out, where layouts
cannot be told by shape.
"""

_SLIDING: dict[str, object] = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2}

MORE_FAMILIES: dict[str, dict[str, object]] = {
    "olmo": {**_LLAMA_LIKE, "clip_qkv": 3.0},
    "olmo3": {**_LLAMA_LIKE, **_SLIDING},
    "cohere2": {**_LLAMA_LIKE, "logit_scale": 2.0, **_SLIDING},
    "glm": {**_GEMMA_LIKE, "attention_bias": True},
    "glm4": _GEMMA_LIKE,
    "smollm3": {**_LLAMA_LIKE, "no_rope_layers": [1, 0, 1, 0]},
    "exaone4": {**_LLAMA_LIKE, **_SLIDING},
    "nemotron": _LLAMA_LIKE,
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

_ROUTED: dict[str, object] = {**_LLAMA_LIKE, "intermediate_size": 16, "num_experts_per_tok": 2}
_PARTLY_ROUTED: dict[str, object] = {
    **_LLAMA_LIKE,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}

MIXTURES: dict[str, dict[str, object]] = {
    "qwen2_moe": {
        **_LLAMA_LIKE,
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
        **_LLAMA_LIKE,
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
    "stablelm_parallel": {**_LLAMA_LIKE, "use_parallel_residual": True, "qk_layernorm": True},
    "gpt_neox_sequential": {**FAMILIES["gpt_neox"], "use_parallel_residual": False},
    "bloom_post_norm": {**_BLOOM, "apply_residual_connection_post_layernorm": True, "n_head": 6, "hidden_size": 48},
    "phi_qk_norm": {**_LLAMA_LIKE, "qk_layernorm": True},
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
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
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


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: looking through it for garbage costs a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def model_type_of(family: str) -> str:
    """`config.model_type` of a name in `ROWS` or `VARIANTS`."""
    return max((row for row in ARCHITECTURES if family.startswith(row)), key=len)


def build_tokenizer(*, bos: bool = False, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences, with or without a BOS token in front."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TRAINING_TEXT, trainer)
    if bos:
        core.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
            ]
        )
    else:
        core.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side=padding_side,
    )


def tiny_config(family: str, vocab_size: int) -> PretrainedConfig:
    """The configuration of a tiny model: a family, a variant of one, or a multimodal model around one."""
    if family not in WRAPPED:
        settings = {**ROWS, **VARIANTS}[family]
        return AutoConfig.for_model(model_type_of(family), vocab_size=vocab_size, **settings, **_TOKENS)
    settings = dict(WRAPPED[family])
    text_type = settings.pop("text_model_type")
    text = ROWS.get(text_type, {**_LLAMA_LIKE, "rope_parameters": _MROPE})
    text_config = {"model_type": text_type, "vocab_size": vocab_size, **text, **_TOKENS}
    wrapper = family.partition("/")[0]
    return AutoConfig.for_model(wrapper, text_config=text_config, tie_word_embeddings=False, **settings, **_TOKENS)


def build_tiny(
    family: str = "llama", *, bos: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> EditableModel:
    """A tiny random model of a family, wrapped; its own, though it is made, and checked, only once."""
    made = _made(family, bos, dtype, seed)
    own = copy.copy(made)
    own.model, own.tokenizer = copy.deepcopy((made.model, made.tokenizer))
    own.contents, own._base, own._parts = WeightContents(own), BaseWeights(), WrappedParts(own)
    return own


@cache
def _made(family: str, bos: bool, dtype: torch.dtype, seed: int) -> EditableModel:
    tokenizer = build_tokenizer(bos=bos)
    config = tiny_config(family, len(tokenizer))
    auto = AutoModelForImageTextToText if family in WRAPPED else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config).to(dtype)
        if family in MIXTURES and dtype == torch.float64:  # which grouped products do not compute with
            model.set_experts_implementation("eager")
        # Random, distinct biases and norms: nothing may pass a test by being zero or one.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, 0.1)
            elif "norm" in name or "ln_" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return EditableModel(model.eval(), tokenizer, name=f"tiny-{family}")


@pytest.fixture(params=kinds(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> EditableModel:
    """One tiny model for each kind of family; in slow tests, for each family."""
    return build_tiny(request.param)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_disks() -> Iterator[None]:
    """A test cannot cut the power; that bytes are sent to the disk, and before names, is tested in test_durable.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels: drawing takes most of a report's time, and a test that wants this looks at none."""
    figure = pytest.importorskip(
        "matplotlib.figure", reason="matplotlib is not installed: pip install 'emendo[report]'"
    )
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda *args, **more: save(*args, **{**more, "dpi": 20}))


@pytest.fixture
def tiny_llama() -> EditableModel:
    """A tiny random Llama."""
    return build_tiny("llama")


@pytest.fixture
def tiny_gpt2() -> EditableModel:
    """A tiny random GPT-2 (Conv1D weights)."""
    return build_tiny("gpt2")


@pytest.fixture(scope="session")
def demo_model() -> EditableModel:
    """The demo model; tests that use it leave it unchanged."""
    try:
        return load("demo", device="cpu")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
