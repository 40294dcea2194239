"""What published settings are, and the models that they are for: recognised by their configuration, never by name.

Other models may have the same facts: a fine-tuned copy, or another generation of the same size. Whatever is told of
such a match therefore speaks of a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView


@dataclass(frozen=True)
class Preset:
    """Settings that a source gives for one method or baseline on one model.

    Args:
        layers: Edited layers.
        source: Where the numbers come from.
        settings: Values by dotted name.
    """

    layers: tuple[int, ...]
    source: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


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

    def matches(self, lm: DecoderView) -> bool:
        """Whether a loaded model has these facts."""
        found = (lm.spec.model_type, lm.n_layers, lm.d_model)
        return found == (self.model_type, self.n_layers, self.d_model) and self.vocab_size in (None, lm.vocab_size)

    @property
    def shape(self) -> str:
        """The facts that it is recognised by, in words."""
        vocabulary = "" if self.vocab_size is None else f", vocabulary {self.vocab_size}"
        return f"{self.model_type}, {self.n_layers} layers of {self.d_model}{vocabulary}"


SMOLLM2_135M = KnownModel("SmolLM2-135M", "llama", 30, 576, 49152)
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
