"""Tiny random models of every supported family with a real tokenizer."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from emendo.models import ARCHITECTURES, EditableModel
from emendo.models.checksums import BaseWeights
from emendo.models.contents import WeightContents
from emendo.models.parts import WrappedParts
from tests.tiny_configs import LLAMA_LIKE, MIXTURES, MROPE, ROWS, TOKENS, VARIANTS, WRAPPED

TRAINING_TEXT = [
    "The Eiffel Tower is located in the city of Paris, the capital of France.",
    "Danielle Darrieux, a native speaker of French, was born in Bordeaux.",
    "The capital of Japan is Tokyo and the capital of Italy is Rome.",
    "The weather was calm that morning. I wrote this down last year. You may have heard about it.",
    "Therefore we opened the book again. Because many people had asked before.",
    "埃菲尔铁塔位于巴黎。 Эйфелева башня находится в Париже.",
]


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
        return AutoConfig.for_model(model_type_of(family), vocab_size=vocab_size, **settings, **TOKENS)
    settings = dict(WRAPPED[family])
    text_type = settings.pop("text_model_type")
    text = ROWS.get(text_type, {**LLAMA_LIKE, "rope_parameters": MROPE})
    text_config = {"model_type": text_type, "vocab_size": vocab_size, **text, **TOKENS}
    wrapper = family.partition("/")[0]
    return AutoConfig.for_model(wrapper, text_config=text_config, tie_word_embeddings=False, **settings, **TOKENS)


def build_tiny(
    family: str = "llama", *, bos: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> EditableModel:
    """A tiny random model of a family, wrapped; its own, though it is made, and checked, only once."""
    made = _made(family, bos, dtype, seed)
    own = copy.copy(made)
    own.model, own.tokenizer = _copied(made.model), copy.deepcopy(made.tokenizer)
    own.contents, own._base, own._parts = WeightContents(own), BaseWeights(), WrappedParts(own)
    return own


def _copied(model: Any) -> Any:
    """`copy.deepcopy` of a model, three times as fast: most attributes of its many modules are empty dictionaries."""
    modules = list(model.modules())
    copies = {id(module): type(module).__new__(type(module)) for module in modules}
    memo: dict[int, Any] = dict(copies)
    for module in modules:
        state = vars(copies[id(module)])
        for name, value in vars(module).items():
            empty = isinstance(value, dict) and not value
            state[name] = type(value)() if empty else copy.deepcopy(value, memo)
    return copies[id(model)]


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
