"""The second moment of a mixture's stacked keys: its diagonal blocks, in the place of a dense layer's C."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.arguments import check_width
from emendo.shapes import Moment


@dataclass(frozen=True, eq=False)
class KeySample:
    """Some preserved keys as they were routed, to price a change on them as it is and not block by block.

    Attributes:
        keys: Gated keys, ``[tokens, k, width]``.
        experts: Their experts, ``[tokens, k]``.
        weights: What each token counts; they sum to 1.
    """

    keys: Float[Tensor, "tokens k width"]
    experts: Int[Tensor, "tokens k"]
    weights: Float[Tensor, " tokens"]

    def to(self, where: Any) -> KeySample:
        """On another device."""
        return KeySample(self.keys.to(where), self.experts.to(where), self.weights.to(where))

    def joined(self, other: KeySample) -> KeySample:
        """The keys of both, each with its weight."""
        parts = zip((self.keys, self.experts, self.weights), (other.keys, other.experts, other.weights), strict=True)
        return KeySample(*(torch.cat([one, more.to(one)]) for one, more in parts))


@dataclass(frozen=True, eq=False)
class BlockMoment:
    """The mean second moment of stacked keys, block by block, in the place of C.

    Attributes:
        blocks: Cₑ of every expert over all tokens, those included that do not reach it, ``[experts, width, width]``.
        counts: How many keys each was counted from.
        name: What messages call the layer.
        sample: Keys to compare the price with, if there are any.
    """

    blocks: Float[Tensor, "experts width width"]
    counts: Int[Tensor, " experts"]
    name: str = "a mixture of experts"
    sample: KeySample | None = None

    @property
    def experts(self) -> int:
        """Number of blocks."""
        return int(self.blocks.shape[0])

    @property
    def width(self) -> int:
        """Width of one expert's key."""
        return int(self.blocks.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """That of the whole matrix, ``(d_in, d_in)``."""
        d_in = self.experts * self.width
        return d_in, d_in

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.blocks.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the blocks."""
        return self.blocks.dtype

    def to(self, where: Any) -> BlockMoment:
        """On another device or in another dtype."""
        sample = None if self.sample is None else self.sample.to(self.blocks.to(where).device)
        return replace(self, blocks=self.blocks.to(where), sample=sample)

    def diagonal(self) -> Float[Tensor, " d_in"]:
        """The diagonal of the whole matrix."""
        return self.blocks.diagonal(dim1=1, dim2=2).reshape(-1)

    def dense(self) -> Moment:
        """The whole matrix, for small ones."""
        whole: Tensor = torch.block_diag(*self.blocks)
        return whole

    def written(self, dual_keys: Float[Tensor, "n d_in"]) -> int:
        """How many experts an update with these dual keys changes."""
        return int((dual_keys.view(len(dual_keys), self.experts, self.width) != 0).any(dim=2).any(dim=0).sum())

    def scaled(self, weight: float) -> BlockMoment:
        """Times a number, as a part of a mixture of texts."""
        sample = self.sample and replace(self.sample, weights=self.sample.weights * weight)
        return replace(self, blocks=self.blocks * weight, sample=sample)

    def plus(self, other: BlockMoment) -> BlockMoment:
        """The sum of two, with the keys of both."""
        own, more = self.sample, other.sample
        return replace(
            self,
            blocks=self.blocks + other.blocks.to(self.blocks),
            counts=self.counts + other.counts.to(self.counts),
            sample=None if own is None or more is None else own.joined(more),
        )

    def shrunk(self) -> BlockMoment:
        """Each Cₑ drawn towards the mean of all by ``ρₑ = width / (width + nₑ)``."""
        share = (self.width / (self.width + self.counts.to(self.blocks))).view(-1, 1, 1)
        return replace(self, blocks=torch.lerp(self.blocks, self.blocks.mean(dim=0, keepdim=True), share))


@torch.no_grad()
def times_moment(rows: Float[Tensor, "n d_in"], moment: Moment | BlockMoment) -> Float[Tensor, "n d_in"]:
    """Rows times C, in the rows' dtype and on their device."""
    if isinstance(moment, BlockMoment):
        check_width("rows", rows, moment.shape[0])
        parts = rows.view(len(rows), moment.experts, moment.width)
        found: Tensor = torch.einsum("new,ewv->nev", parts, moment.blocks.detach().to(rows))
        return found.reshape(rows.shape)
    product: Tensor = rows @ moment.detach().to(rows)
    return product
