"""The experts of a layer as one edited map ``W = [W₁ … W_E]`` over stacked keys (`models.experts`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emendo.models.edited_map import Original, PlainOriginal, same_bits
from emendo.shapes import Weight


@dataclass(frozen=True)
class Mixture:
    """The sizes of a layer's mixture of experts.

    Attributes:
        experts: E.
        width: Width of one expert's key.
        chosen: How many experts a token takes.
    """

    experts: int
    width: int
    chosen: int

    @property
    def directions(self) -> int:
        """Tokens that give every expert as many keys as it has directions, if they were spread evenly."""
        return -(-self.experts * self.width // self.chosen)


@dataclass(frozen=True)
class ExpertsMap:
    """The down-projections of all experts of a module, side by side.

    A module keeps them as ``[experts, d_out, width]``, or the other way round with ``is_transposed``.

    Args:
        module: The experts, as transformers' experts interface has them.
    """

    module: Any

    @property
    def transposed(self) -> bool:
        """Whether the module keeps ``[experts, width, d_out]``, as gpt-oss does."""
        return bool(self.module.is_transposed)

    @property
    def parameter(self) -> Tensor:
        """The one parameter of all experts."""
        parameter: Tensor = self.module.down_proj
        return parameter

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.parameter)

    @property
    def width(self) -> int:
        """Width of one expert's key."""
        return int(self.parameter.shape[1 if self.transposed else 2])

    @property
    def shape(self) -> tuple[int, int]:
        """d_out and d_in, of all experts together."""
        parameter = self.parameter
        return int(parameter.shape[2 if self.transposed else 1]), len(parameter) * self.width

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameter."""
        return self.parameter.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameter."""
        return self.parameter.device

    @property
    def written_in_place(self) -> list[Tensor]:
        """The parameter."""
        return [self.parameter]

    def read(self) -> Weight:
        """W ``[d_out, d_in]``: a view where the module is transposed, else a copy."""
        parameter = self.parameter.detach()
        d_out, d_in = self.shape
        if self.transposed:
            return parameter.reshape(d_in, d_out).T
        return parameter.transpose(0, 1).reshape(d_out, d_in)

    def write(self, weight: Weight) -> None:
        """Overwrite all experts in place."""
        self.parameter.detach().copy_(self.stored(weight))

    def stored(self, weight: Weight) -> Tensor:
        """A weight ``[d_out, d_in]`` as the module keeps it, a view."""
        parts = weight.reshape(len(weight), -1, self.width)
        return parts.permute(1, 2, 0) if self.transposed else parts.transpose(0, 1)

    def holds(self, weight: Weight) -> bool:
        """Whether the experts have these bits, cast to their dtype."""
        found = self.read()
        return found.shape == weight.shape and same_bits(found, weight.to(found))

    def original(self) -> Original:
        """A copy of W."""
        return PlainOriginal(self.read().clone())

    def put_back(self, original: Original) -> None:
        """Overwrite all experts with the copy."""
        self.write(original.weight)
