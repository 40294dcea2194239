"""What Emendo knows about each decoder family: one row a `config.model_type`, and refusals with the reason.

A row says where things are and what a block does; `editable.py` and the suffix replay are the only readers. Nothing
outside `emendo.models` names a Hugging Face module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from emendo.arguments import checked
from emendo.arguments.registry import Registry
from emendo.arguments.suggest import nearest
from emendo.errors import UnsupportedModelError
from emendo.models.quantised_kinds import refuse_method
from emendo.models.refusals import BIDIRECTIONAL, REFUSALS


@dataclass(frozen=True)
class Variant:
    """Facts that differ where a configuration's attribute has a value.

    Args:
        attribute: Name in the configuration.
        value: The value that makes the difference.
        facts: Fields of `ArchitectureSpec` and what they are then.
    """

    attribute: str
    value: object
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """Where a decoder family keeps the parts that editing needs, and what its blocks do with them.

    Args:
        model_type: `config.model_type` of the family's text decoder.
        decoder: Path of the module that holds the blocks, from the causal-LM model.
        blocks: Name of the block list inside the decoder.
        attention: Name of the attention module inside a block.
        attention_output: Path, inside a block, of the module that gives attention's own output; None where the
            attention module does (BLOOM's adds the residual stream to it).
        down_projection: Path of the edited linear map inside a block: the MLP's output projection.
        experts: Path, inside a block, of the experts of a mixture, whose output projections are the edited map of a
            block that has them; other blocks of the family have the dense one.
        final: Modules inside the decoder that follow the last block, in order; a configuration may leave one out.
        rotary: Name of the module that makes position embeddings for the blocks; None where blocks
            take positions themselves or positions enter at the embedding.
        rotary_by_layer_type: Whether sliding and full layers have position embeddings of their own.
        rotary_axes: Position numbers of a token: 3 where images have time, height and width (text repeats one).
        alibi: Whether attention adds a bias that is linear in the position of the key.
        idle_arguments: Arguments that a block demands and its packed attention does not read.
        attention_seam: How a block can be given another attention function: ``"interface"`` through
            transformers' attention interface, otherwise the name of one in `models.packed`.
        mlp_normed: Whether the down-projection's output, or its sum with the residual stream, passes through a
            norm: then a change of it is no equal change of the block's output.
        mlp_scale: Name in the configuration of the factor with which the MLP's output joins the residual stream.
        parallel: Whether attention and MLP of a block both read the block's input.
        logit_scale: Name in the configuration of a factor on the logits.
        logit_divisor: Name in the configuration of a divisor of the logits.
        logit_softcap: Name in the configuration of a bound c of the logits, ``c tanh(logits / c)``.
        max_length: Longest text where the configuration names none, since positions are not counted.
        variants: What differs between configurations of the family.
        wrapper: `config.model_type` of the multimodal model that the decoder was found in.
        examples: Models of the family, for `emendo models`.
    """

    model_type: str
    decoder: str
    blocks: str
    attention: str
    down_projection: str
    final: tuple[str, ...]
    experts: str | None = None
    attention_output: str | None = None
    rotary: str | None = None
    rotary_by_layer_type: bool = False
    rotary_axes: int = 1
    alibi: bool = False
    idle_arguments: tuple[str, ...] = ()
    attention_seam: str = "interface"
    mlp_normed: bool = False
    mlp_scale: str | None = None
    parallel: bool = False
    logit_scale: str | None = None
    logit_divisor: str | None = None
    logit_softcap: str | None = None
    max_length: int | None = None
    variants: tuple[Variant, ...] = field(default=(), repr=False)
    wrapper: str | None = None
    examples: str = ""


def _llama_like(model_type: str, examples: str, **facts: Any) -> ArchitectureSpec:
    common: dict[str, Any] = {
        "decoder": "model",
        "blocks": "layers",
        "attention": "self_attn",
        "down_projection": "mlp.down_proj",
        "final": ("norm",),
        "rotary": "rotary_emb",
    }
    return ArchitectureSpec(model_type=model_type, examples=examples, **{**common, **facts})


def _gpt_like(model_type: str, examples: str, down_projection: str, **facts: Any) -> ArchitectureSpec:
    common: dict[str, Any] = {"decoder": "transformer", "blocks": "h", "attention": "attn", "final": ("ln_f",)}
    return ArchitectureSpec(
        model_type=model_type, examples=examples, down_projection=down_projection, **{**common, **facts}
    )


def _routed(model_type: str, examples: str, experts: str = "mlp.experts", **facts: Any) -> ArchitectureSpec:
    return _llama_like(model_type, examples, experts=experts, **facts)


_ROWS = (
    _llama_like("llama", "Llama 2 and 3, SmolLM, SmolLM2, TinyLlama, Vicuna"),
    _llama_like("mistral", "Mistral 7B"),
    _llama_like("ministral", "Ministral 8B"),
    _llama_like("ministral3", "Ministral 3"),
    _llama_like("qwen2", "Qwen1.5, Qwen2, Qwen2.5"),
    _llama_like("qwen3", "Qwen3 (dense)"),
    _llama_like("qwen2_vl_text", "text decoder of Qwen2-VL", rotary_axes=3),
    _llama_like("qwen2_5_vl_text", "text decoder of Qwen2.5-VL", rotary_axes=3),
    _llama_like("qwen3_vl_text", "text decoder of Qwen3-VL (dense)", rotary_axes=3),
    _llama_like("phi3", "Phi-3, Phi-3.5, Phi-4 (dense)"),
    _llama_like(
        "phi",
        "Phi-1, Phi-1.5, Phi-2",
        down_projection="mlp.fc2",
        final=("final_layernorm",),
        parallel=True,
    ),
    _llama_like("gemma", "Gemma 2B and 7B"),
    _llama_like("gemma2", "Gemma 2", mlp_normed=True, logit_softcap="final_logit_softcapping"),
    _llama_like(
        "gemma3_text",
        "Gemma 3",
        mlp_normed=True,
        rotary_by_layer_type=True,
        logit_softcap="final_logit_softcapping",
    ),
    _llama_like("olmo", "OLMo 1"),
    _llama_like("olmo2", "OLMo 2", mlp_normed=True),
    _llama_like("olmo3", "OLMo 3", mlp_normed=True, rotary_by_layer_type=True),
    _llama_like("granite", "Granite 3 (dense)", mlp_scale="residual_multiplier", logit_divisor="logits_scaling"),
    _llama_like("cohere", "Command R, Aya 23", parallel=True, logit_scale="logit_scale"),
    _llama_like("cohere2", "Command R7B, Command A, Aya Vision", parallel=True, logit_scale="logit_scale"),
    _llama_like("glm", "GLM-4 9B"),
    _llama_like("glm4", "GLM-4-0414", mlp_normed=True),
    _llama_like("smollm3", "SmolLM3"),
    _llama_like("exaone4", "EXAONE 4", mlp_normed=True),
    _llama_like("nemotron", "Nemotron-4, Minitron"),
    _llama_like(
        "stablelm",
        "StableLM 3B, StableLM 2",
        variants=(Variant("use_parallel_residual", True, {"parallel": True}),),
    ),
    _llama_like("starcoder2", "StarCoder2", down_projection="mlp.c_proj"),
    _llama_like(
        "opt",
        "OPT 125M to 66B",
        decoder="model.decoder",
        down_projection="fc2",
        final=("final_layer_norm", "project_out"),
        rotary=None,
        # OPT 350M alone: the sum of MLP and residual stream is normed.
        variants=(Variant("do_layer_norm_before", False, {"mlp_normed": True}),),
    ),
    _gpt_like("gpt2", "GPT-2 small to XL", "mlp.c_proj"),
    _gpt_like("gpt_bigcode", "StarCoder, SantaCoder", "mlp.c_proj"),
    _gpt_like("gpt_neo", "GPT-Neo 125M to 2.7B", "mlp.c_proj", attention="attn.attention", attention_seam="gpt_neo"),
    _gpt_like("gptj", "GPT-J 6B", "mlp.fc_out", attention_seam="gptj", parallel=True),
    _gpt_like("codegen", "CodeGen", "mlp.fc_out", attention_seam="gptj", parallel=True),
    _gpt_like(
        "bloom",
        "BLOOM, BLOOMZ",
        "mlp.dense_4h_to_h",
        attention="self_attention",
        attention_output="self_attention.dense",
        attention_seam="bloom",
        idle_arguments=("alibi",),
        alibi=True,
        max_length=2048,  # the length of its training texts: nothing in the model ends there
    ),
    _gpt_like(
        "falcon",
        "Falcon 7B, 40B and 180B, Falcon-RW",
        "mlp.dense_4h_to_h",
        attention="self_attention",
        attention_seam="falcon",
        idle_arguments=("alibi",),
        rotary="rotary_emb",
        parallel=True,
        variants=(Variant("alibi", True, {"alibi": True}), Variant("parallel_attn", False, {"parallel": False})),
    ),
    _llama_like(
        "gpt_neox",
        "GPT-NeoX 20B, Pythia",
        decoder="gpt_neox",
        attention="attention",
        down_projection="mlp.dense_4h_to_h",
        final=("final_layer_norm",),
        parallel=True,
        variants=(Variant("use_parallel_residual", False, {"parallel": False}),),
    ),
    _routed("qwen2_moe", "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B"),
    _routed("qwen3_moe", "Qwen3-30B-A3B, Qwen3-235B-A22B"),
    _routed("mixtral", "Mixtral 8x7B and 8x22B"),
    _routed("olmoe", "OLMoE-1B-7B"),
    _routed("gpt_oss", "gpt-oss-20b and 120b (weights in 16 bits or more)"),
    _routed("deepseek_v3", "DeepSeek-V3, DeepSeek-R1, Moonlight, Kimi-K2"),
    _routed("glm4_moe", "GLM-4.5, GLM-4.5-Air, GLM-4.6"),
    _routed(
        "granitemoe",
        "Granite 3.0 1B-A400M and 3B-A800M",
        "block_sparse_moe.experts",
        mlp_scale="residual_multiplier",
        logit_divisor="logits_scaling",
    ),
    _routed("phimoe", "Phi-3.5-MoE"),
    _routed("ernie4_5_moe", "ERNIE-4.5-21B-A3B"),
    _routed("dots1", "dots.llm1"),
    _routed("hunyuan_v1_moe", "Hunyuan-A13B"),
)

ARCHITECTURES: Registry[ArchitectureSpec] = Registry(
    "model family",
    _ROWS,
    of=ArchitectureSpec,
    group="emendo.model_families",
    option="config.model_type",
    error=UnsupportedModelError,
    name_of=lambda row: row.model_type,
)
"""Supported families by `config.model_type`."""


@checked
def register_model_family(spec: ArchitectureSpec, *, replace: bool = False) -> ArchitectureSpec:
    """Add a model family: models of its `model_type` can then be loaded and edited.

    A model is checked against its own forward pass when it is wrapped, so a row that does not fit is refused.

    Args:
        spec: The row.
        replace: Take the place of a registered one of the same `model_type`.

    Raises:
        PluginError: The family is there already, or it is no row.
    """
    return ARCHITECTURES.register(spec, replace=replace)


_LANGUAGE_MODEL = (
    *("aya_vision", "cohere2_vision", "fast_vlm", "gemma3", "got_ocr2", "internvl", "lighton_ocr", "llava"),
    *("llava_next", "llava_next_video", "llava_onevision", "mistral3", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"),
    *("video_llava", "vipllava"),
)

WRAPPERS: dict[str, str] = {
    **dict.fromkeys(_LANGUAGE_MODEL, "model.language_model"),
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), "model.text_model"),
}
"""Multimodal models whose text decoder can be edited: `config.model_type` and the path of the decoder's model.

Their unembedding is a bare linear map: a family's scaling or bound of the logits is not applied in them.
"""


def resolve_architecture(config: Any) -> ArchitectureSpec:
    """The facts about a model with this configuration: its family's row, or that of the decoder inside it.

    Args:
        config: A transformers configuration.

    Raises:
        UnsupportedModelError: The family is refused or unknown, or its weights are quantised in a way that is not read.
    """
    refuse_method(config)
    model_type = getattr(config, "model_type", None)
    if model_type in WRAPPERS:
        return _inside(str(model_type), config.get_text_config(decoder=True))
    if model_type in REFUSALS:
        raise _unsupported(model_type, REFUSALS[model_type])
    if model_type not in ARCHITECTURES:
        raise _unsupported(model_type, _why_unknown(config))
    if getattr(config, "use_bidirectional_attention", None):
        raise _unsupported(model_type, f"{BIDIRECTIONAL} (its configuration sets use_bidirectional_attention)")
    spec = ARCHITECTURES[str(model_type)]
    for variant in spec.variants:
        if getattr(config, variant.attribute, None) == variant.value:
            spec = replace(spec, **variant.facts)
    return spec


@checked
def has_dead_units(config: Any) -> bool:
    """Whether the activation is zero over a whole range, as a ReLU is, so that a unit may never fire at all.

    Args:
        config: Of the decoder.
    """
    names = ("activation_function", "hidden_act", "hidden_activation", "activation", "mlp_hidden_act")
    return any(getattr(config, name, None) in ("relu", "relu2", "relu6", "relu_squared") for name in names)


def refuse_own_code(config: Mapping[str, Any]) -> None:
    """Refuse a model that brings the code of its family, which is never run, where Emendo does not know the family.

    Args:
        config: Of its ``config.json``.

    Raises:
        UnsupportedModelError: See above.
    """
    model_type = config.get("model_type")
    if config.get("auto_map") and not any(model_type in known for known in (ARCHITECTURES, WRAPPERS, REFUSALS)):
        raise _unsupported(model_type, "its code comes with the model (auto_map in config.json) and is never run")


def _inside(wrapper: str, text_config: Any) -> ArchitectureSpec:
    """The row of a multimodal model's text decoder, with paths from the whole model."""
    try:
        spec = resolve_architecture(text_config)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"the text decoder of this {wrapper!r} model cannot be edited: {error}") from error
    # The wrapper holds the decoder's bare model, which the causal LM holds under the first name of the row's path.
    path = ".".join([WRAPPERS[wrapper], *spec.decoder.split(".")[1:]])
    return replace(spec, decoder=path, wrapper=wrapper, logit_scale=None, logit_divisor=None, logit_softcap=None)


def _why_unknown(config: Any) -> str:
    """Why a model type without a row cannot be edited: of a multimodal model, what its text decoder is."""
    absent = "it is not in Emendo's architecture table"
    try:
        text = config.get_text_config(decoder=True)
    except (AttributeError, ValueError):  # no configuration of transformers, or one of several decoders
        return absent
    if text is config or text.model_type == config.model_type:
        return absent
    if text.model_type in REFUSALS:
        return f"its text decoder is a {text.model_type!r}, which is {REFUSALS[text.model_type]}"
    if text.model_type in ARCHITECTURES:
        return f"{absent} of multimodal models, though its text decoder alone is of a family in it, {text.model_type!r}"
    return f"neither it nor its text decoder, a {text.model_type!r}, is in Emendo's architecture table"


def _unsupported(model_type: object, reason: str) -> UnsupportedModelError:
    near = nearest(str(model_type or ""), [*ARCHITECTURES, *WRAPPERS], most=3, cutoff=0.6)
    hint = f"Nearest of those that are: {', '.join(map(repr, near))}. " if near else ""
    return UnsupportedModelError(
        f"model_type {model_type!r} is not supported: {reason}. {hint}`emendo models` lists all, and what is refused"
    )
