"""Weights in few bits, as bitsandbytes and torchao keep them: which modules have them, their numbers, their parts.

The libraries are recognised by what they have put into a model, so that none of them is imported for a model without.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from emendo.shapes import Weight

ROUNDED_INPUTS = 5e-2
"""Largest relative deviation of a map's output that rounding its inputs to 8 bits explains."""

PLAIN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Dtypes of weights that are the numbers themselves."""


def kind_of(module: Any) -> str | None:
    """Which few-bit weight a linear map has: ``nf4``, ``fp4``, ``int8``, ``torchao-int8`` …; None for plain numbers."""
    if isinstance(module, SidePath):
        return None
    name = type(module).__name__
    weight: Any = getattr(module, "weight", None)
    if type(module).__module__.startswith("bitsandbytes."):
        if name == "Linear8bitLt":
            return "int8"
        return str(weight.quant_type) if getattr(weight, "quant_state", None) is not None else None
    if type(weight).__module__.startswith("torchao."):
        values = getattr(weight, "qdata", None)
        inside = type(weight).__name__ if values is None else str(values.dtype).removeprefix("torch.")
        return f"torchao-{'fp8' if inside.startswith('float8') else inside}"
    return None


def rounds_inputs(module: Any) -> bool:
    """Whether a few-bit map also rounds what enters it."""
    return kind_of(module) == "int8" or getattr(getattr(module, "weight", None), "act_quant_kwargs", None) is not None


def dequantised(module: Any) -> Weight:
    """The numbers that a few-bit map computes with, ``[d_out, d_in]`` in float32; a tensor of its own."""
    weight = module.weight
    with torch.no_grad():
        if kind_of(module) == "int8":
            values, scales = int8_parts(module)
            return values.float() * (scales.float() / 127)[:, None]
        if type(module).__module__.startswith("bitsandbytes."):
            return four_bits(weight.data, weight.quant_state)
        return weight.detach().dequantize().float().clone()


def four_bits(packed: Tensor, quant_state: Any) -> Weight:
    """What 4-bit numbers of bitsandbytes stand for, ``[d_out, d_in]`` in float32.

    Args:
        packed: Two of them a byte.
        quant_state: Scales, code and shape.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(quant_state)
    state.dtype = torch.float32
    return dequantize_4bit(packed, state).view(*state.shape).float()


def weight_parts(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of a model by name; of a few-bit weight all that it is made of: numbers, scales, layout.

    What edits have put beside such a weight is left out, and so is the module that holds both: it is the base's.
    """
    packed = {id(module.weight): module for module in model.modules() if kind_of(module)}
    around = [f"{name}." for name, module in model.named_modules() if isinstance(module, SidePath)]
    for full, parameter in model.named_parameters():
        name = full
        if (place := next((one for one in around if full.startswith(one)), None)) is not None:
            if not full.startswith(f"{place}base."):
                continue
            name = place + full.removeprefix(f"{place}base.")
        module = packed.get(id(parameter))
        if module is None:
            yield name, parameter
            continue
        layout, parts = _parts(module)
        for part, tensor in parts.items():
            yield f"{name}{part} ({layout})", tensor


def is_packed(parameter: Tensor) -> bool:
    """Whether a parameter is of a library's own class, with more to it than its numbers."""
    return type(parameter) is not nn.Parameter and type(parameter).__module__.startswith(("bitsandbytes.", "torchao."))


def repacks(module: Any) -> bool:
    """Whether bitsandbytes changes a 4-bit weight in a forward pass, or has: on CPUs with bf16 instructions it does."""
    if type(module).__module__.startswith("bitsandbytes.") and module.weight.device.type == "cpu":
        done = getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False)
        return bool(done or getattr(module, REPACKING, False))
    return False


REPACKING = "support_avx512bf16_for_cpu"
"""Attribute of a 4-bit map of bitsandbytes: whether its forward pass may pack the weight anew, for kernels in bf16."""


class SidePath(nn.Module):
    """A few-bit map, untouched, and beside it a matrix of plain numbers: what edits add.

    Args:
        base: The map.
        change: ΔW ``[d_out, d_in]``.
    """

    def __init__(self, base: Any, change: Weight) -> None:
        super().__init__()
        self.base = base
        self.change = nn.Parameter(change, requires_grad=False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.training = base.training

    @property
    def bias(self) -> Tensor | None:
        """The map's own."""
        return self.base.bias

    @property
    def weight(self) -> Any:
        """The map's own weight, without the change."""
        return self.base.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """The map's output and what is added to it."""
        out: Tensor = self.base(inputs)
        return out + nn.functional.linear(inputs.to(self.change.dtype), self.change).to(out.dtype)


def int8_parts(module: Any) -> tuple[Tensor, Tensor]:
    """Numbers and scales of LLM.int8: bitsandbytes moves them from the weight to the module in the first pass."""
    weight, state = module.weight, module.state
    values = next((one for one in (state.CB, weight.CB) if one is not None), weight)
    return values, weight.SCB if weight.SCB is not None else state.SCB


def _parts(module: Any) -> tuple[str, dict[str, Tensor]]:
    """The layout of a few-bit weight in words, and its tensors by name."""
    kind, weight = str(kind_of(module)), module.weight
    if kind == "int8":
        values, scales = int8_parts(module)
        return kind, {"": values, ".SCB": scales}
    if type(module).__module__.startswith("bitsandbytes."):
        state = weight.quant_state
        found = {"": weight, ".absmax": state.absmax, ".code": state.code}
        if state.nested:
            inner = state.state2
            found |= {".offset": state.offset, ".nested_absmax": inner.absmax, ".nested_code": inner.code}
        return f"{kind}, {tuple(state.shape)}, blocks of {state.blocksize}", found
    inner, layout = weight.__tensor_flatten__()
    blocks = tuple(layout.get("block_size") or ())
    return f"{kind}, {tuple(weight.shape)}, blocks of {blocks}", {f".{part}": getattr(weight, part) for part in inner}
