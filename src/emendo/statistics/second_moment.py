"""The uncentred second moment of key vectors as a commutative monoid: add, merge, mean."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Count, checked
from emendo.errors import MomentsError, NumericalError
from emendo.shapes import Keys, Moment
from emendo.solve.numerics import pinned

Accumulate: TypeAlias = Literal["float64", "float32"]
"""Dtype of the running sum."""

ACCUMULATE_DTYPES: dict[str, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
"""What each `accumulate` setting means."""


class SecondMoment:
    """The sum of k kᵀ over key vectors, and how many there were.

    A commutative monoid: `empty` is the identity, ``a + b`` the operation (commutative bit for bit, associative
    up to rounding of the sum). Shards of a corpus can therefore be counted anywhere and merged.

    The product of a block of keys is taken in the keys' own precision, at least float32, and added to a
    sum in `accumulate`. Rounding of a float32 product does not build up from block to block in a float64
    sum, which keeps the fast product and nearly all of the accuracy.

    Args:
        total: Sum of outer products, symmetric, shape ``[d_in, d_in]``.
        count: Number of key vectors in it.

    Raises:
        MomentsError: `total` is not a square matrix in float32 or float64, or `count` is negative.
    """

    @checked(sizes=False)
    def __init__(self, total: Float[Tensor, "d_in d_in"], count: int) -> None:
        if total.ndim != 2 or total.shape[0] != total.shape[1]:
            raise MomentsError(f"a second moment is a square matrix; found shape {list(total.shape)}")
        if total.dtype not in ACCUMULATE_DTYPES.values() or count < 0:
            raise MomentsError(
                f"a second moment is a float32 or float64 sum over at least 0 keys; found {total.dtype} over {count}"
            )
        self.total = total
        self.count = int(count)

    @classmethod
    @checked
    def empty(
        cls,
        d_in: Count,
        *,
        accumulate: Accumulate = "float64",
        device: torch.device | str = "cpu",
    ) -> SecondMoment:
        """The moment of no keys.

        Args:
            d_in: Length of a key vector.
            accumulate: Dtype of the running sum.
            device: Where the sum is kept; keys are moved there.
        """
        dtype = accumulate_dtype(accumulate)
        return cls(torch.zeros(d_in, d_in, dtype=dtype, device=device), 0)

    @checked
    def to(self, device: torch.device | str) -> SecondMoment:
        """The same on another device."""
        return SecondMoment(self.total.to(device), self.count)

    @property
    def d_in(self) -> int:
        """Length of a key vector."""
        return int(self.total.shape[0])

    @property
    def accumulate(self) -> Accumulate:
        """Dtype of the running sum."""
        return "float64" if self.total.dtype == torch.float64 else "float32"

    @checked
    def add(self, keys: Keys) -> None:
        """Count more keys, in place.

        Args:
            keys: Key vectors as rows, shape ``[n, d_in]``; float16 and bfloat16 are multiplied in float32.

        Raises:
            MomentsError: The keys do not have `d_in` columns.
            NumericalError: A key is not finite, or its square overflows. Nothing was counted.
        """
        if tuple(keys.shape) == (0, self.d_in):
            return
        self.add_product(self.product(keys), int(keys.shape[0]))

    @checked
    @pinned(gradients=False)
    def product(self, keys: Keys) -> Moment:
        """What `add` adds for these keys: the sum of their outer products, symmetric, in at least float32.

        The unit of summation: products of the same keys that somebody else has made give the same sum, bit for bit,
        where they are added in the same order (`add_product`).

        Args:
            keys: Key vectors as rows, shape ``[n, d_in]``.

        Raises:
            MomentsError: The keys do not have `d_in` columns.
            NumericalError: A key is not finite, or its square overflows.
        """
        if keys.ndim != 2 or keys.shape[1] != self.d_in:
            raise MomentsError(f"expected keys of shape [n, {self.d_in}], found {list(keys.shape)}")
        rows = keys.detach().to(self.total.device)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        product = rows.T @ rows
        # Entry (j, j) sums the squares of column j: it is finite only where the whole column is.
        bad = ~torch.isfinite(product.diagonal())
        if bool(bad.any()):
            raise NumericalError(
                f"{int(bad.sum())} of {self.d_in} key components are NaN, infinite or too large to square in "
                f"{rows.dtype} (first: component {int(bad.nonzero()[0, 0])}); the model's activations left the "
                "finite numbers. Load it in a wider dtype (--dtype float32)"
            )
        # A matrix product need not be symmetric to the last bit; the mean of it and its transpose is.
        return (product + product.T).mul_(0.5)

    @checked
    def add_product(self, product: Moment, count: int) -> None:
        """Add what `product` gave for `count` keys.

        Raises:
            MomentsError: It is of another size.
        """
        if product.shape != self.total.shape:
            raise MomentsError(f"expected a product of shape {list(self.total.shape)}, found {list(product.shape)}")
        self.total += product.to(self.total)
        self.count += count

    @checked
    def merge(self, other: SecondMoment) -> SecondMoment:
        """The moment of both sets of keys; neither operand changes.

        Raises:
            MomentsError: Sizes or dtypes differ.
        """
        if self.d_in != other.d_in or self.accumulate != other.accumulate:
            raise MomentsError(
                f"cannot merge second moments of {self.d_in} components in {self.accumulate} and "
                f"{other.d_in} components in {other.accumulate}: collect both for the same module and with "
                "the same accumulate setting"
            )
        return SecondMoment(self.total + other.total.to(self.total.device), self.count + other.count)

    def __add__(self, other: SecondMoment) -> SecondMoment:
        return self.merge(other)

    def mean(self) -> Moment:
        """C = E[k kᵀ] in float64: what the preservation weight multiplies.

        Raises:
            MomentsError: No keys were counted.

        Source: Meng et al. 2022 (arXiv 2202.05262), section 3.1: C = K Kᵀ, here divided by the number of keys.
        """
        if self.count == 0:
            raise MomentsError("a second moment of no keys has no mean; collect it first (emendo moments collect)")
        return self.total.to(torch.float64) / self.count

    def __repr__(self) -> str:
        return f"SecondMoment(d_in={self.d_in}, count={self.count}, accumulate={self.accumulate!r})"


def accumulate_dtype(accumulate: str) -> torch.dtype:
    """The dtype that an `accumulate` setting names.

    Raises:
        MomentsError: No such setting.
    """
    if accumulate not in ACCUMULATE_DTYPES:
        raise MomentsError(f"accumulate={accumulate!r}; expected one of {', '.join(map(repr, ACCUMULATE_DTYPES))}")
    return ACCUMULATE_DTYPES[accumulate]
