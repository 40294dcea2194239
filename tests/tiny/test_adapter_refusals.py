"""Models that cannot be wrapped: each is refused with what it is and what to load instead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import ByT5Tokenizer, LlamaForSequenceClassification

from emendo.errors import UnsupportedModelError
from emendo.models import EditableModel, wrap


def down(lm: EditableModel, layer: int) -> nn.Module:
    return lm.model.get_submodule(lm.module_name(layer))


def refused(model: object, tokenizer: object, *words: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        wrap(model, tokenizer)
    for word in words:
        assert word in str(caught.value)


class Wrapped(nn.Module):
    """What an adapter library puts in the place of a linear map."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.weight = base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def test_wrapped_linear_is_refused(tiny: EditableModel) -> None:
    parent, _, name = tiny.module_name(1).rpartition(".")
    setattr(tiny.model.get_submodule(parent), name, Wrapped(down(tiny, 1)))
    refused(tiny.model, tiny.tokenizer, tiny.module_name(1), "Wrapped", "unload()")


def test_models_that_are_not_the_causal_lm_itself_are_refused(tiny_llama: EditableModel) -> None:
    tokenizer, config = tiny_llama.tokenizer, tiny_llama.model.config

    class Outer(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.base_model, self.config = model, config

    refused(tiny_llama.model.model, tokenizer, "LlamaModel", "AutoModelForCausalLM")
    refused(Outer(tiny_llama.model), tokenizer, "Outer", "merge_and_unload")
    refused(LlamaForSequenceClassification(config), tokenizer, "LlamaForSequenceClassification", "unembedding")
    refused(nn.Linear(2, 2), tokenizer, "model_type None", "emendo models")


def test_offloaded_weights_are_refused(tiny_llama: EditableModel) -> None:
    refused(tiny_llama.model.to("meta"), tiny_llama.tokenizer, "meta", "offload")


def test_weights_that_are_not_floating_point_are_refused(tiny_llama: EditableModel) -> None:
    module = down(tiny_llama, 2)
    module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    refused(tiny_llama.model, tiny_llama.tokenizer, tiny_llama.module_name(2), "int8", "--dtype float32")


def test_quantised_and_unknown_models_are_refused(tiny_llama: EditableModel) -> None:
    config = tiny_llama.model.config
    config.quantization_config = {"quant_method": "gptq"}
    refused(tiny_llama.model, tiny_llama.tokenizer, "gptq", "unquantised")
    del config.quantization_config
    for model_type in ("flex_olmo", "t5", "my_own"):
        config.model_type = model_type
        refused(tiny_llama.model, tiny_llama.tokenizer, repr(model_type), "emendo models")


def test_slow_tokenizers_are_refused(tiny_llama: EditableModel) -> None:
    refused(tiny_llama.model, ByT5Tokenizer(), "ByT5Tokenizer", "offsets", "AutoTokenizer")
