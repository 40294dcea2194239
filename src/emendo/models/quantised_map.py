"""The edited map of a layer whose weight is kept in few bits: read as what it computes with, edited beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emendo.models.edited_map import EditedMap, Original
from emendo.models.packed_weights import SidePath, dequantised
from emendo.shapes import Weight


@dataclass(frozen=True)
class QuantisedOriginal:
    """The module itself, which nothing has been written to.

    Args:
        module: With the few-bit weight.
    """

    module: Any

    @property
    def weight(self) -> Weight:
        """What it computes with, in float32."""
        return dequantised(self.module)

    def is_in(self, found: EditedMap) -> bool:
        """Whether the very module is in its place again; that its weight is untouched, checksums say."""
        return isinstance(found, QuantisedMap) and found.module is self.module


@dataclass(frozen=True)
class QuantisedMap:
    """A map with a few-bit weight: an edit stands beside it, and the map itself stays the object that it is.

    A weight W that is written becomes the matrix W − W₀ in a `SidePath` around the module, so that the base goes on
    computing what it computes, its own rounding of inputs included, and a small edit is not rounded to the base's grid.

    Args:
        owner: The module that holds the map.
        name: Of the map in it.
        dtype: Of the residual stream.
    """

    owner: nn.Module
    name: str
    dtype: torch.dtype

    @property
    def module(self) -> Any:
        """What stands in the map's place."""
        return getattr(self.owner, self.name)

    @property
    def base(self) -> Any:
        """The module with the few-bit weight."""
        module = self.module
        return module.base if isinstance(module, SidePath) else module

    @property
    def transposed(self) -> bool:
        """Never: both libraries keep ``[d_out, d_in]``."""
        return False

    @property
    def shape(self) -> tuple[int, int]:
        """d_out and d_in."""
        return self.base.out_features, self.base.in_features

    @property
    def device(self) -> torch.device:
        """Of the weight."""
        return self.base.weight.device

    @property
    def written_in_place(self) -> list[Tensor]:
        """What stands beside the weight."""
        module = self.module
        return [module.change] if isinstance(module, SidePath) else []

    def read(self) -> Weight:
        """What the map computes with, edits included, in float32."""
        module = self.module
        found = dequantised(self.base)
        return found + module.change.detach().float() if isinstance(module, SidePath) else found

    def write(self, weight: Weight) -> None:
        """Put what is missing to a weight beside the map."""
        module, change = self.module, self._beside(weight)
        if isinstance(module, SidePath):
            module.change.detach().copy_(change)
        else:
            setattr(self.owner, self.name, SidePath(module, change))

    def holds(self, weight: Weight) -> bool:
        """Whether what stands beside the map is what writing `weight` puts there, bit for bit."""
        module = self.module
        return isinstance(module, SidePath) and torch.equal(module.change.detach(), self._beside(weight))

    def original(self) -> Original:
        """The module itself."""
        return QuantisedOriginal(self.base)

    def put_back(self, original: Original) -> None:
        """Put the very module back."""
        assert isinstance(original, QuantisedOriginal)  # what `original` gave
        setattr(self.owner, self.name, original.module)

    def _beside(self, weight: Weight) -> Weight:
        base = dequantised(self.base)
        return (weight.to(base) - base).to(self.dtype)
