"""What llama.cpp calls the models that Emendo edits: `general.architecture` of their files, and the edited tensors."""

from __future__ import annotations

from types import ModuleType

from emendo.errors import ExportError
from emendo.io.extras import pip_install
from emendo.models import EditableModel

GGUF_ARCHITECTURES: dict[str, str] = {
    **dict.fromkeys(("llama", "mistral", "ministral"), "llama"),
    "ministral3": "mistral3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text"), "qwen2vl"),
    "qwen3_vl_text": "qwen3vl",
    "phi3": "phi3",
    "phi": "phi2",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "olmo": "olmo",
    **dict.fromkeys(("olmo2", "olmo3"), "olmo2"),
    "granite": "granite",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "glm": "chatglm",
    "glm4": "glm4",
    "smollm3": "smollm3",
    "exaone4": "exaone4",
    "nemotron": "nemotron",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
    "gpt_bigcode": "starcoder",
    "bloom": "bloom",
    "falcon": "falcon",
    "gpt_neox": "gptneox",
}
"""`general.architecture` by `config.model_type`; in all of them the edited map is `blk.N.ffn_down`.

Source: the names in the gguf package and the families that llama.cpp's converter registers for them.
"""


def gguf_package() -> ModuleType:
    """The package gguf, imported where it is needed.

    Raises:
        ExportError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ExportError(f"writing GGUF files needs the package gguf: {pip_install('gguf')}") from error
    return gguf  # type: ignore[no-any-return]


def gguf_architecture(lm: EditableModel) -> str:
    """`general.architecture` of the model's GGUF files.

    Raises:
        ExportError: llama.cpp has no such family.
    """
    name = lm.spec.model_type
    if lm.spec.experts is not None:
        raise ExportError(
            f"GGUF files keep the experts of {name!r} as one tensor each layer, and edits of those are not written; "
            "expected a dense model. Other servers take `emendo export peft` or `emendo export checkpoint`"
        )
    if name not in GGUF_ARCHITECTURES:
        raise ExportError(
            f"llama.cpp runs no models of the family {name!r}, so there is no GGUF file that this edit could go with; "
            f"expected one of {', '.join(sorted(GGUF_ARCHITECTURES))}. Other servers take `emendo export peft` or "
            "`emendo export checkpoint`"
        )
    return GGUF_ARCHITECTURES[name]


def down_projection(layer: int) -> str:
    """Name of a layer's edited weight in GGUF files, stored as ``[d_out, d_in]`` in every family."""
    return f"blk.{layer}.ffn_down.weight"
