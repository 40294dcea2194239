"""Second moments of a mixture of experts: one sum an expert, over gated keys, with a few keys kept as they are.

Tokens that do not reach an expert count as keys of nothing there, so that ``Cₑ = Σ gₑ² kₑ kₑᵀ / tokens`` is a diagonal
block of the second moment of stacked keys. How many keys each sum has is kept beside it: it says how far a Cₑ is to be
trusted. The first keys are kept whole, since only they can say what the blocks leave out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.arguments import Count, checked
from emendo.errors import MomentsError, NumericalError
from emendo.solve import BlockMoment, KeySample
from emendo.statistics.second_moment import ACCUMULATE_DTYPES, Accumulate, accumulate_dtype

if TYPE_CHECKING:
    from emendo.models.experts import RoutedKeys

SAMPLED = 256
"""Keys that are kept whole."""


class ExpertSecondMoment:
    """Sums of gₑ² kₑ kₑᵀ by expert, how many keys are in each, and over how many tokens; a monoid like `SecondMoment`.

    Args:
        total: Sums of outer products, ``[experts, width, width]``.
        counts: Keys in each.
        count: Tokens.
        sample: Gated keys ``[tokens, k, width]`` of the first tokens and their experts ``[tokens, k]``; None for none.

    Raises:
        MomentsError: They do not belong together.
    """

    def __init__(
        self,
        total: Float[Tensor, "experts width width"],
        counts: Int[Tensor, " experts"],
        count: int,
        sample: tuple[Float[Tensor, "tokens k width"], Int[Tensor, "tokens k"]] | None = None,
    ) -> None:
        square = total.ndim == 3 and total.shape[1] == total.shape[2] and counts.shape == total.shape[:1]
        if not square or total.dtype not in ACCUMULATE_DTYPES.values() or count < 0:
            raise MomentsError(
                "second moments of experts are float32 or float64 sums [experts, width, width] with counts; found "
                f"{total.dtype} {list(total.shape)} and {list(counts.shape)} over {count} tokens"
            )
        self.total, self.counts, self.count, self.sample = total, counts, int(count), sample

    @classmethod
    @checked
    def empty(
        cls, experts: Count, width: Count, *, accumulate: Accumulate = "float64", device: torch.device | str = "cpu"
    ) -> ExpertSecondMoment:
        """The moment of no keys.

        Args:
            experts: Number of experts.
            width: Length of one expert's key.
            accumulate: Dtype of the running sums.
            device: Where the sums are kept.
        """
        total = torch.zeros(experts, width, width, dtype=accumulate_dtype(accumulate), device=device)
        return cls(total, torch.zeros(experts, dtype=torch.int64, device=device), 0)

    def to(self, device: torch.device | str) -> ExpertSecondMoment:
        """The same with its sums on another device."""
        return ExpertSecondMoment(self.total.to(device), self.counts.to(device), self.count, self.sample)

    def add(self, keys: RoutedKeys) -> None:
        """Count more keys, in place.

        Args:
            keys: Of some tokens, ``[tokens, k, ·]``.

        Raises:
            MomentsError: They are of another width.
            NumericalError: A key is not finite, or its square overflows. Nothing was counted.
        """
        self.add_product(self.product(keys), len(keys.experts))

    def product(self, keys: RoutedKeys) -> ExpertSecondMoment:
        """What `add` adds for these keys, in at least float32: the unit of summation, as of `SecondMoment`.

        Raises:
            MomentsError: The keys are of another width.
            NumericalError: A key is not finite, or its square overflows.
        """
        experts, width = self.total.shape[:2]
        if keys.n_experts != experts or keys.keys.shape[-1] != width:
            raise MomentsError(
                f"expected keys of {experts} experts of width {width}, found {keys.n_experts} of {keys.keys.shape[-1]}"
            )
        gated = keys.gated()
        total = gated.new_zeros(experts, width, width, device=self.total.device)
        counts = torch.zeros_like(self.counts)
        for expert, own in keys.by_expert():
            product = own.T @ own
            if not bool(product.diagonal().isfinite().all()):
                raise NumericalError(
                    f"keys of expert {expert} are NaN, infinite or too large to square in {product.dtype}; the model's "
                    "activations left the finite numbers. Load it in a wider dtype (--dtype float32)"
                )
            total[expert] = ((product + product.T) * 0.5).to(total)
            counts[expert] = len(own)
        sample = (gated[:SAMPLED].float().cpu(), keys.experts[:SAMPLED].cpu()) if len(gated) else None
        return ExpertSecondMoment(total, counts, len(gated), sample)

    def add_product(self, product: ExpertSecondMoment, count: int) -> None:
        """Add what `product` gave for the keys of `count` tokens."""
        self.total += product.total.to(self.total)
        self.counts += product.counts.to(self.counts)
        self.count += count
        if product.sample is not None:
            self._append(*product.sample)

    def merge(self, other: ExpertSecondMoment) -> ExpertSecondMoment:
        """The moment of both sets of keys; neither operand changes.

        Raises:
            MomentsError: Sizes or dtypes differ.
        """
        if self.total.shape != other.total.shape or self.total.dtype != other.total.dtype:
            raise MomentsError(
                f"cannot merge second moments of experts {list(self.total.shape)} in {self.total.dtype} and "
                f"{list(other.total.shape)} in {other.total.dtype}: collect both for the same module"
            )
        total, counts = other.total.to(self.total.device), other.counts.to(self.counts.device)
        merged = ExpertSecondMoment(self.total + total, self.counts + counts, self.count + other.count, self.sample)
        if other.sample is not None:
            merged._append(*other.sample)
        return merged

    def mean(self, name: str = "a mixture of experts") -> BlockMoment:
        """Cₑ = E[gₑ² kₑ kₑᵀ] of every expert in float64, drawn towards their mean where there are few keys.

        Args:
            name: What messages call the layer.

        Raises:
            MomentsError: No keys were counted.
        """
        if self.count == 0:
            raise MomentsError("a second moment of no keys has no mean; collect it first (emendo moments collect)")
        sample = None
        if self.sample is not None:
            keys, experts = self.sample
            sample = KeySample(keys.double(), experts, torch.full((len(keys),), 1 / len(keys), dtype=torch.float64))
        blocks = self.total.to(torch.float64) / self.count
        return BlockMoment(blocks, self.counts.clone(), name, sample).shrunk()

    @property
    def accumulate(self) -> Accumulate:
        """Dtype of the running sums."""
        return "float64" if self.total.dtype == torch.float64 else "float32"

    def __repr__(self) -> str:
        experts, width = self.total.shape[:2]
        return f"ExpertSecondMoment(experts={experts}, width={width}, count={self.count})"

    def _append(self, keys: Float[Tensor, "tokens k width"], experts: Int[Tensor, "tokens k"]) -> None:
        if self.sample is not None and len(self.sample[0]) == SAMPLED:
            return
        if self.sample is not None:
            keys, experts = torch.cat([self.sample[0], keys]), torch.cat([self.sample[1], experts])
        self.sample = keys[:SAMPLED].clone(), experts[:SAMPLED].clone()
