"""What Emendo knows about each decoder family: one row a `config.model_type`, and refusals with the reason.

A row says where things are; `adapter.py` is the only reader. Nothing outside `emendo.models` names a
Hugging Face module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emendo.errors import UnsupportedModelError


@dataclass(frozen=True)
class ArchitectureSpec:
    """Where a decoder family keeps the parts that editing needs.

    Args:
        model_type: `config.model_type` of the family.
        decoder: Path of the module that holds the blocks, from the causal-LM model.
        blocks: Name of the block list inside the decoder.
        attention: Name of the attention module inside a block.
        down_projection: Path of the edited linear map inside a block: the MLP's output projection.
        final_norm: Name of the last norm inside the decoder.
        rotary: Name of the module that makes position embeddings for the blocks; None where blocks
            take positions themselves or positions enter at the embedding.
        attention_seam: How a block can be given another attention function: ``"interface"`` through
            transformers' attention interface, ``"method"`` where the module still has its own.
        examples: Models of the family, for `emendo models`.
    """

    model_type: str
    decoder: str
    blocks: str
    attention: str
    down_projection: str
    final_norm: str
    rotary: str | None
    attention_seam: str
    examples: str
    mlp_normed: bool = False
    mlp_scale: str | None = None


def _llama_like(model_type: str, examples: str) -> ArchitectureSpec:
    return ArchitectureSpec(
        model_type=model_type,
        decoder="model",
        blocks="layers",
        attention="self_attn",
        down_projection="mlp.down_proj",
        final_norm="norm",
        rotary="rotary_emb",
        attention_seam="interface",
        examples=examples,
    )


_ROWS = (
    _llama_like("llama", "Llama 2 and 3, SmolLM, SmolLM2, TinyLlama, Vicuna"),
    _llama_like("mistral", "Mistral 7B"),
    _llama_like("qwen2", "Qwen1.5, Qwen2, Qwen2.5"),
    _llama_like("qwen3", "Qwen3 (dense)"),
    ArchitectureSpec(
        model_type="gpt2",
        decoder="transformer",
        blocks="h",
        attention="attn",
        down_projection="mlp.c_proj",
        final_norm="ln_f",
        rotary=None,
        attention_seam="interface",
        examples="GPT-2 small to XL",
    ),
    ArchitectureSpec(
        model_type="gptj",
        decoder="transformer",
        blocks="h",
        attention="attn",
        down_projection="mlp.fc_out",
        final_norm="ln_f",
        rotary=None,
        attention_seam="method",
        examples="GPT-J 6B",
    ),
    ArchitectureSpec(
        model_type="gpt_neox",
        decoder="gpt_neox",
        blocks="layers",
        attention="attention",
        down_projection="mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        rotary="rotary_emb",
        attention_seam="interface",
        examples="GPT-NeoX 20B, Pythia",
    ),
)

ARCHITECTURES: dict[str, ArchitectureSpec] = {row.model_type: row for row in _ROWS}
"""Supported families by `config.model_type`."""

_MOE = "a mixture of experts keeps a fact in several expert MLPs, and which one runs depends on the token"
_ENCODER_DECODER = "an encoder-decoder has no single left-to-right residual stream to edit"
_STATE_SPACE = "a state-space or recurrent block has no MLP down-projection to edit"
_ENCODER = "an encoder predicts masked tokens; editing needs a left-to-right language model"

REFUSALS: dict[str, str] = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"), _MOE),
    **dict.fromkeys(("gpt_oss", "granitemoe", "phimoe", "dbrx", "jetmoe"), _MOE),
    **dict.fromkeys(("t5", "mt5", "bart", "mbart", "pegasus", "marian", "whisper"), _ENCODER_DECODER),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "bamba"), _STATE_SPACE),
    **dict.fromkeys(("bert", "roberta", "distilbert", "deberta-v2", "electra"), _ENCODER),
}
"""Families that are refused, with the reason."""


def resolve_architecture(config: Any) -> ArchitectureSpec:
    """The row for a model's configuration.

    Args:
        config: A transformers configuration.

    Raises:
        UnsupportedModelError: The family is refused or unknown, or its weights are quantised.
    """
    model_type = getattr(config, "model_type", None)
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = (
            quantization.get("quant_method", "unknown")
            if isinstance(quantization, dict)
            else getattr(quantization, "quant_method", "unknown")
        )
        raise UnsupportedModelError(
            f"this model's weights are quantised ({method}); an edit is far smaller than a quantisation "
            "step and would be rounded away. Load the unquantised checkpoint (--model)"
        )
    if model_type in REFUSALS:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported: {REFUSALS[model_type]}. "
            f"Supported: {', '.join(sorted(ARCHITECTURES))} (see `emendo models`)"
        )
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported: it is not in Emendo's architecture table. "
            f"Supported: {', '.join(sorted(ARCHITECTURES))} (see `emendo models`)"
        )
    return ARCHITECTURES[model_type]
