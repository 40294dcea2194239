"""Settings by method and model, each with its source, and the rule for models that have none.

A model is recognised by facts of its configuration, never by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from emendo.methods.config import MethodConfig
from emendo.models import ModelAdapter


@dataclass(frozen=True)
class KnownModel:
    """A model recognised by its shape.

    Args:
        name: How it is called in messages.
        model_type: Family.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        vocab_size: Rows of the embedding, where two models share the other facts; None otherwise.
    """

    name: str
    model_type: str
    n_layers: int
    d_model: int
    vocab_size: int | None = None

    def matches(self, adapter: ModelAdapter) -> bool:
        """Whether a loaded model has these facts."""
        found = (adapter.spec.model_type, adapter.n_layers, adapter.d_model)
        return found == (self.model_type, self.n_layers, self.d_model) and self.vocab_size in (None, adapter.vocab_size)


@dataclass(frozen=True)
class Preset:
    """Settings that a source gives for one method on one model.

    Args:
        layers: Edited layers.
        source: Where the numbers come from.
        settings: Values by dotted name.
    """

    layers: tuple[int, ...]
    source: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


SMOLLM2_135M = KnownModel("SmolLM2-135M", "llama", 30, 576)
GPT2_MEDIUM = KnownModel("GPT2-medium", "gpt2", 24, 1024)
GPT2_LARGE = KnownModel("GPT2-large", "gpt2", 36, 1280)
GPT2_XL = KnownModel("GPT2-XL", "gpt2", 48, 1600)
GPT_J = KnownModel("GPT-J-6B", "gptj", 28, 4096)
GPT_NEOX = KnownModel("GPT-NeoX-20B", "gpt_neox", 44, 6144)
LLAMA_2_7B = KnownModel("Llama-2-7B", "llama", 32, 4096, 32000)
LLAMA_3_8B = KnownModel("Llama-3-8B", "llama", 32, 4096, 128256)
LLAMA_32_3B = KnownModel("Llama-3.2-3B", "llama", 28, 3072, 128256)
MISTRAL_7B = KnownModel("Mistral-7B", "mistral", 32, 4096)
QWEN2_7B = KnownModel("Qwen2-7B or Qwen2.5-7B", "qwen2", 28, 3584)

_ROME = "ROME public code"
_MEMIT = "MEMIT public code"
_UNIFIED = "public code of arXiv 2403.14236"
_EASYEDIT = "EasyEdit settings"
_ALPHAEDIT = "AlphaEdit public code"
_PMET = "PMET public code"
_ENCORE = "ENCORE public code"
_MEASURED = "measured on held-apart facts, docs/demo-model.md"

# SmolLM2 has no BOS token, so a subject that opens a prompt stands on the attention sink, whose key resembles no other.
# Weighing the plain prompt like any context, instead of by one half, keeps that key from ruling the mean.
_FLAT_KEYS = {"keys.average": "flat"}
_SPREAD = {**_FLAT_KEYS, "distribution": "even", "target.argmax_steps": 5}
_FIVE = (4, 5, 6, 7, 8)
_SLOW = {"target.learning_rate": 0.1}
_LONG = {"target.steps": 25, "target.max_norm_ratio": 4.0, "target.weight_decay": 1e-3}
_SHORT = {"target.steps": 20, "target.max_norm_ratio": 0.75}


def _lambda(value: float) -> dict[str, Any]:
    return {"preservation.weight": value}


PRESETS: dict[str, dict[KnownModel, Preset]] = {
    "emendo": {SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED)},
    "rome": {
        SMOLLM2_135M: Preset((5,), _MEASURED),
        GPT2_MEDIUM: Preset((8,), _ROME, {"target.max_norm_ratio": 3.0}),
        GPT2_LARGE: Preset((12,), _ROME),
        GPT2_XL: Preset((17,), _ROME),
        GPT_J: Preset((5,), _ROME),
        GPT_NEOX: Preset((15,), _MEMIT),
        LLAMA_2_7B: Preset((5,), _EASYEDIT, _LONG),
        LLAMA_3_8B: Preset((5,), _ALPHAEDIT, _LONG),
        LLAMA_32_3B: Preset((5,), _EASYEDIT, _LONG),
        MISTRAL_7B: Preset((5,), _EASYEDIT, _LONG),
        QWEN2_7B: Preset((5,), _EASYEDIT, _LONG),
    },
    "memit": {
        SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED, {**_FLAT_KEYS, **_lambda(100)}),
        GPT2_XL: Preset((13, 14, 15, 16, 17), _MEMIT, {**_SHORT, **_lambda(20000)}),
        GPT_J: Preset((3, 4, 5, 6, 7, 8), _MEMIT, _lambda(15000)),
        GPT_NEOX: Preset((6, 7, 8, 9, 10), _PMET, {"target.steps": 20, "target.max_norm_ratio": 0.8, **_lambda(6000)}),
        LLAMA_2_7B: Preset((4, 5, 6, 7, 8), _EASYEDIT, {**_LONG, **_lambda(15000)}),
        LLAMA_3_8B: Preset((4, 5, 6, 7, 8), _ALPHAEDIT, {"target.learning_rate": 0.1, **_lambda(15000)}),
        LLAMA_32_3B: Preset((4, 5, 6, 7, 8), _EASYEDIT, {**_LONG, **_lambda(15000)}),
        MISTRAL_7B: Preset((4, 5, 6, 7, 8), _EASYEDIT, {**_LONG, **_lambda(15000)}),
        QWEN2_7B: Preset((4, 5, 6, 7, 8), _EASYEDIT, {**_LONG, **_lambda(15000)}),
    },
    "emmet": {
        SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED, _SPREAD),
        GPT2_XL: Preset((17,), _UNIFIED, _SHORT),
        GPT_J: Preset((5,), _UNIFIED),
        LLAMA_2_7B: Preset((5,), _UNIFIED, _LONG),
        LLAMA_32_3B: Preset((5,), _EASYEDIT, _LONG),
    },
    "emmet-published": {
        SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED, {**_FLAT_KEYS, "distribution": "even"}),
        GPT2_XL: Preset((17,), _UNIFIED, {**_SHORT, **_lambda(1000)}),
        GPT_J: Preset((5,), _UNIFIED, _lambda(1)),
        LLAMA_2_7B: Preset((5,), _UNIFIED, {**_LONG, **_lambda(1)}),
        LLAMA_32_3B: Preset((5,), _EASYEDIT, {**_LONG, **_lambda(100000)}),
    },
    "pmet": {
        SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED, {**_FLAT_KEYS, **_lambda(100)}),
        GPT_J: Preset((3, 4, 5, 6, 7, 8), _PMET),
        GPT_NEOX: Preset(
            (6, 7, 8, 9, 10),
            _PMET,
            {
                "target.learning_rate": 0.5,
                "target.max_norm_ratio": 0.8,
                "target.kl_weight": 0.8,
                **_lambda(15000),
            },
        ),
        LLAMA_2_7B: Preset(
            _FIVE,
            "PMET's authors (issue 5 of their repository)",
            {
                "target.learning_rate": 0.5,
                "target.steps": 20,
                "target.max_norm_ratio": 1.0,
                "target.kl_weight": 0.0625,
            },
        ),
        LLAMA_32_3B: Preset(
            _FIVE,
            _EASYEDIT,
            {
                "target.learning_rate": 0.5,
                "target.steps": 25,
                "target.max_norm_ratio": 1.0,
                "target.kl_weight": 0.0625,
                **_lambda(15000),
            },
        ),
    },
    "alphaedit": {
        SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED, _FLAT_KEYS),
        GPT2_XL: Preset((13, 14, 15, 16, 17), _ALPHAEDIT, _SHORT),
        GPT_J: Preset((3, 4, 5, 6, 7, 8), _ALPHAEDIT),
        LLAMA_2_7B: Preset(_FIVE, _ENCORE, _SLOW),
        LLAMA_3_8B: Preset(_FIVE, _ALPHAEDIT, _SLOW),
        QWEN2_7B: Preset(_FIVE, _EASYEDIT, {**_LONG, "preservation.ridge": 1.0}),
    },
    "encore": {
        SMOLLM2_135M: Preset((1, 2, 3, 4, 5), _MEASURED, {**_FLAT_KEYS, **_lambda(100)}),
        GPT2_XL: Preset((13, 14, 15, 16, 17), _ENCORE, {**_SHORT, **_lambda(20000), "target.argmax_steps": 3}),
        LLAMA_2_7B: Preset(_FIVE, _ENCORE),
        LLAMA_3_8B: Preset(_FIVE, _ENCORE, {"preservation.ridge": 20.0, "target.argmax_steps": 1}),
    },
}
_LATE_FAMILIES = ("gpt2", "gpt_neox")


def presets_of(config: MethodConfig) -> dict[KnownModel, Preset]:
    """A method's settings by model, which may be those of another method."""
    return PRESETS.get(config.presets or config.name, {})


def preset_for(config: MethodConfig, adapter: ModelAdapter) -> tuple[str, Preset] | None:
    """The preset of a method for a loaded model, with the model's name; None where there is none."""
    for model, preset in presets_of(config).items():
        if model.matches(adapter):
            return model.name, preset
    return None


def layers_by_depth(adapter: ModelAdapter, span: int) -> tuple[tuple[int, ...], str]:
    """Layers for a model without a preset, and the rule in words.

    One layer: at 0.35 of the depth for GPT-2 and GPT-NeoX, 0.17 otherwise. Several: `span` consecutive layers that end
    at 0.35 and 0.26. These are the depths of the published settings (GPT2-XL 17 of 48, GPT-J 5 of 28, Llama 5 of 32;
    MEMIT ends at 17 of 48, 8 of 28, 8 of 32).
    """
    late = adapter.spec.model_type in _LATE_FAMILIES
    depth = 0.35 if late else (0.17 if span == 1 else 0.26)
    last = min(adapter.n_layers - 1, max(span - 1, round(depth * adapter.n_layers)))
    first = max(0, last - span + 1)
    rule = f"rule for models without a preset: {span} layer(s) ending at {depth} of the depth"
    return tuple(range(first, last + 1)), rule
