"""What a configuration says of quantised weights, and which of them can be edited; no torch, for lists of models."""

from __future__ import annotations

from typing import Any

from emendo.errors import UnsupportedModelError

EDITABLE = ("bitsandbytes", "torchao")
"""Values of `quantization_config.quant_method` whose models can be edited."""

_UNPACKED = "Load the unquantised model (--model), in few bits if need be (--load-in nf4)"
_REFUSED = {
    "gptq": f"its kernels give no gradients on a CPU and its package (gptqmodel) has none to install. {_UNPACKED}",
    "awq": f"its kernels give no gradients. {_UNPACKED}",
    "compressed-tensors": "Emendo does not read its layouts yet. Decompress it first (transformers: "
    "CompressedTensorsConfig(run_compressed=False), then save_pretrained), or load the unquantised model",
    "fp8": "its blocks of scales are not read yet. Dequantise it first (transformers: FineGrainedFP8Config("
    "dequantize=True), then save_pretrained)",
    "mxfp4": "its blocks are not read yet. Dequantise it first (transformers: Mxfp4Config(dequantize=True), then "
    "save_pretrained)",
}


def method_of(config: Any) -> str | None:
    """How a configuration says that its weights are quantised; None where they are plain numbers."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown")


def refuse_method(config: Any) -> None:
    """Refuse a model whose weights are quantised in a way that Emendo does not read.

    Raises:
        UnsupportedModelError: Says what to do instead.
    """
    method = method_of(config)
    if method is None or method in EDITABLE:
        return
    why = _REFUSED.get(method, f"Emendo does not read its layout. {_UNPACKED}")
    raise UnsupportedModelError(
        f"this model's weights are quantised ({method}), and {why}. Quantised weights that can be edited: "
        f"{' and '.join(EDITABLE)}"
    )
