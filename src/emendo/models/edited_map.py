"""How a layer's edited weight is read, written and put back, whatever module keeps it.

Editing sees one linear map a layer, `[d_out, d_in]` in plain numbers. A module may keep them as they are, the other way
round, packed into few bits, or as one matrix an expert; what differs between those is here, behind `EditedMap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from emendo.shapes import Weight


class Original(Protocol):
    """A layer's map as it was before anything was written to it."""

    @property
    def weight(self) -> Weight:
        """Its weight ``[d_out, d_in]``, not to be changed."""
        ...

    def is_in(self, found: EditedMap) -> bool:
        """Whether a map is this one again, bit for bit."""
        ...


class EditedMap(Protocol):
    """A layer's edited linear map in one model."""

    @property
    def shape(self) -> tuple[int, int]:
        """d_out and d_in."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in: a written weight is rounded to it once."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether the module keeps ``[d_in, d_out]``."""
        ...

    @property
    def written_in_place(self) -> list[Tensor]:
        """Parameters whose numbers a write changes: an isolated model that is to be written has its own of them."""
        ...

    def read(self) -> Weight:
        """The weight ``[d_out, d_in]``, not to be changed; a view where the module keeps plain numbers."""
        ...

    def write(self, weight: Weight) -> None:
        """Make the map compute with another weight of its shape, cast once."""
        ...

    def holds(self, weight: Weight) -> bool:
        """Whether it has, bit for bit, what writing `weight` gives."""
        ...

    def original(self) -> Original:
        """What `put_back` needs; to be asked before the first write."""
        ...

    def put_back(self, original: Original) -> None:
        """Make the map what it was, bit for bit."""
        ...


@dataclass(frozen=True)
class PlainOriginal:
    """A copy of a plain weight."""

    weight: Weight

    def is_in(self, found: EditedMap) -> bool:
        """Whether a map has these bits."""
        return same_bits(found.read(), self.weight)


@dataclass(frozen=True)
class PlainMap:
    """A Linear or a Conv1D with plain numbers.

    Args:
        module: The module.
    """

    module: Any

    @property
    def transposed(self) -> bool:
        """Whether the module keeps ``[d_in, d_out]``, as GPT-2's Conv1D does."""
        return isinstance(self.module, Conv1D)

    @property
    def shape(self) -> tuple[int, int]:
        """d_out and d_in."""
        rows, columns = self.module.weight.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self.module.weight.dtype

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self.module.weight.device

    @property
    def written_in_place(self) -> list[Tensor]:
        """The weight."""
        return [self.module.weight]

    def read(self) -> Weight:
        """A view of the weight."""
        weight = self.module.weight.detach()
        return weight.T if self.transposed else weight

    def write(self, weight: Weight) -> None:
        """Overwrite the weight in place."""
        self.read().copy_(weight)

    def holds(self, weight: Weight) -> bool:
        """Whether the weight has these bits, cast to its dtype."""
        found = self.read()
        return found.shape == weight.shape and same_bits(found, weight.to(found))

    def original(self) -> Original:
        """A copy of the weight."""
        return PlainOriginal(self.read().clone())

    def put_back(self, original: Original) -> None:
        """Overwrite the weight with the copy."""
        self.write(original.weight)


def same_bits(found: Weight, expected: Weight) -> bool:
    """Whether two weights are equal bit for bit."""
    a, b = found.contiguous(), expected.contiguous()
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
