"""Tiny random models of every supported family with a real tokenizer, and the demo model where it is installed."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from emendo.errors import ModelNotFoundError
from emendo.models import ModelAdapter, load

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
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

FAMILIES: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gpt2": GPT2Config,
    "gpt2_square": GPT2Config,
    "gptj": GPTJConfig,
    "gpt_neox": GPTNeoXConfig,
}
"""Every supported family by name; `gpt2_square` has d_in = d_out, where layouts cannot be told by shape."""

_SETTINGS: dict[str, dict[str, object]] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "gpt2": {**_GPT_LIKE, "n_inner": 48},
    "gpt2_square": {**_GPT_LIKE, "n_inner": 32},
    "gptj": {**_GPT_LIKE, "n_inner": 48, "rotary_dim": 4},
    "gpt_neox": {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"},
}


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


def build_tiny(
    family: str = "llama", *, bos: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> ModelAdapter:
    """A tiny random model of a family, wrapped."""
    tokenizer = build_tokenizer(bos=bos)
    config = FAMILIES[family](vocab_size=len(tokenizer), **_SETTINGS[family], **_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        # Random, distinct biases and norms: nothing may pass a test by being zero or one.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, 0.1)
            elif "norm" in name or "ln_" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return ModelAdapter(model.eval(), tokenizer, name=f"tiny-{family}")


@pytest.fixture(params=sorted(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> ModelAdapter:
    """One tiny model for each supported family."""
    return build_tiny(request.param)


@pytest.fixture
def tiny_llama() -> ModelAdapter:
    """A tiny random Llama."""
    return build_tiny("llama")


@pytest.fixture
def tiny_gpt2() -> ModelAdapter:
    """A tiny random GPT-2 (Conv1D weights)."""
    return build_tiny("gpt2")


@pytest.fixture(scope="session")
def demo_model() -> ModelAdapter:
    """The demo model; tests that use it leave it unchanged."""
    try:
        return load("demo", device="cpu")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
