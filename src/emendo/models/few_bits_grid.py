"""The grids of bitsandbytes' weights: which values an entry can take, and the bytes of other levels of the same scales.

Source: QLoRA (arXiv 2305.14314), section 3, and LLM.int8 (arXiv 2208.07339), section 2; layouts of bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from emendo.errors import UnsupportedModelError
from emendo.models.packed_weights import four_bits, int8_parts, kind_of
from emendo.solve.grid_rounding import Grid

IN_PLACE = ("nf4", "fp4", "int8")
"""Kinds whose levels can be changed."""


def few_bits_grid(module: Any) -> Grid:
    """The values that the entries of a few-bit map can take.

    Args:
        module: The map.

    Raises:
        UnsupportedModelError: Its levels cannot be changed.
    """
    if (kind := kind_of(module)) == "int8":
        values, scales = int8_parts(module)
        scale = (scales.float() / 127)[:, None].expand(values.shape)
        return Grid(scale, torch.zeros_like(scale), torch.arange(-127, 128, dtype=torch.float32, device=scale.device))
    if kind not in IN_PLACE:
        raise UnsupportedModelError(
            f"the levels of {kind or 'plain'} weights are not written in place; expected one of {', '.join(IN_PLACE)}. "
            "An adapter leaves every base as it is (emendo export peft)"
        )
    code = module.weight.quant_state.code.float()
    largest = int(code.argmax())
    data = module.weight.data
    highest = torch.full_like(data.view(torch.uint8), largest << 4 | largest).view(data.dtype)
    scale = four_bits(highest, module.weight.quant_state) / code[largest]
    return Grid(scale, torch.zeros_like(scale), code.sort().values)


def put_levels(module: Any, index: Int[Tensor, "d_out d_in"]) -> None:
    """Give a few-bit map other levels; its scales stay.

    Args:
        module: The map, of a model of one's own.
        index: Of the level of every entry in the map's `few_bits_grid`.
    """
    if kind_of(module) == "int8":
        # A copy of a model has them twice: in the weight, and where the forward pass reads them.
        for values in (module.weight.data, int8_parts(module)[0]):
            values.copy_((index - 127).to(torch.int8))
        return
    order = module.weight.quant_state.code.float().argsort()
    levels = order[index].to(torch.uint8).reshape(-1, 2)
    packed = (levels[:, 0] << 4) | levels[:, 1]
    data = module.weight.data
    data.copy_(packed.view(data.dtype).reshape(data.shape))
