"""Families that are refused, with the reason, by `config.model_type`."""

from __future__ import annotations

MIXTURE_OF_EXPERTS = (
    "a mixture of experts whose blocks Emendo has not been held to yet (of mixtures it edits qwen3_moe, mixtral, "
    "gpt_oss and others)"
)
ENCODER_DECODER = "an encoder-decoder has no single left-to-right residual stream to edit"
STATE_SPACE = (
    "a state-space, recurrent or convolution block keeps no keys and values of earlier tokens, which the target "
    "search replays"
)
ENCODER = "an encoder predicts masked tokens; editing needs a left-to-right language model"
BIDIRECTIONAL = "not a causal language model: its tokens see later ones"
CROSS_ATTENTION = "a decoder with cross-attention blocks reads another model's output inside its residual stream"
PARALLEL_STREAMS = "a decoder with several residual streams has no single one to edit"
OWN_POSITIONS = "a decoder whose layers have rotary positions of their own needs one table of them a layer in a replay"
SHARED_KEYS = (
    "layers share keys and values, or read an embedding of the token beside the residual stream; the target search "
    "does not support that yet"
)
TWO_ATTENTIONS = "a decoder whose attention is the difference of two has scores that the replay does not know"
NARROW_VALUES = "a decoder with latent attention has values narrower than its keys, which the replay does not keep yet"
OWN_ATTENTION = (
    "a decoder whose attention does not go through transformers' attention interface needs a function in Emendo that "
    "is not written yet"
)
NO_CACHE = "a model without a cache of keys and values of earlier tokens gives the target search nothing to replay"
QUANTISED = "a model trained in few-bit weights would round an edit away, which is far smaller than a step"

_GEMMA4: tuple[str, ...] = ("gemma4", "gemma4_assistant", "gemma4_text")
_GEMMA4 += ("gemma4_unified", "gemma4_unified_assistant", "gemma4_unified_text")

REFUSALS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("afmoe", "aria_text", "axk1", "axk2", "beam", "cohere2_moe", "dbrx", "deepseek_v2", "deepseek_v32"),
            *("deepseek_v4", "dots3_note_text", "exaone_moe", "flex_olmo", "flint", "glm4_moe_lite", "glm_moe_dsa"),
            *("granitemoe_swa", "granitemoeshared", "hy_v3", "hy_v4", "jetmoe", "kolibri1", "laguna", "llama4"),
            *("llama4_text", "longcat_flash", "mellum", "mimo_v2_flash", "minimax_m2", "minimax_m3_vl_text"),
            *("qwen3_vl_moe_text", "solar_open", "zaya", "deepseek_ocr2_text", "ernie4_5_vl_moe_text"),
            *("glm4v_moe_text", "glm5_next_text", "mistral4", "mistral_large4_text", "muse_spark_text"),
            *("qwen3_omni_moe_text", "step3p5", "unlimited_ocr_text"),
        ),
        MIXTURE_OF_EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5"),
            *("m2m_100", "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet"),
            *("seamless_m4t", "seamless_m4t_v2", "switch_transformers", "t5", "t5gemma", "t5gemma2", "umt5", "whisper"),
            *("florence2", "musicgen", "musicgen_melody", "pix2struct", "pp_formulanet", "udop"),
            "vision-encoder-decoder",
        ),
        ENCODER_DECODER,
    ),
    **dict.fromkeys(
        (
            *("bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "inkling_text", "jamba"),
            *("inkling2_text", "kimi_linear", "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h"),
            *("olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text", "recurrent_gemma"),
            *("rwkv", "xlstm", "zamba", "zamba2"),
        ),
        STATE_SPACE,
    ),
    **dict.fromkeys(
        (
            *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2"),
            *("distilbert", "electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "ibert", "layoutlm"),
            *("longformer", "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "nomic_bert"),
            *("nystromformer", "perceiver", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
            *("squeezebert", "tapas", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso"),
        ),
        ENCODER,
    ),
    **dict.fromkeys(("bert-generation", "idefics", "mllama", "mllama_text_model", "trocr"), CROSS_ATTENTION),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "reformer"), PARALLEL_STREAMS),
    **dict.fromkeys(("diffusion_gemma", "diffusion_gemma_text", "paligemma", "xlnet"), BIDIRECTIONAL),
    **dict.fromkeys(_GEMMA4, SHARED_KEYS),
    **dict.fromkeys(("minicpm3", "youtu"), NARROW_VALUES),
    **dict.fromkeys(("cpmant", "gpt_neox_japanese", "mpt", "xglm"), OWN_ATTENTION),
    "granite_swa": OWN_POSITIONS,
    "diffllama": TWO_ATTENTIONS,
    "openai-gpt": NO_CACHE,
    "bitnet": QUANTISED,
}
"""Families that are refused, with the reason."""
