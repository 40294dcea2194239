"""Moments and products of single passes as tensors of a file, whether of a dense layer or of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from emendo.shapes import Moment
from emendo.statistics.expert_moment import ExpertSecondMoment
from emendo.statistics.second_moment import SecondMoment
from emendo.statistics.triangle import pack_triangle, packed_bytes, unpack_triangle

LayerMoment: TypeAlias = SecondMoment | ExpertSecondMoment
"""The second moment of a layer's keys, or of its experts'."""

Product: TypeAlias = Moment | ExpertSecondMoment
"""What one forward pass adds to it."""

_PARTS = ("total", "counts", "sample_keys", "sample_experts")


def moment_tensors(moment: LayerMoment | Product) -> dict[str, Tensor]:
    """What is stored beside the count: ``total``, and of experts ``counts`` and the keys that are kept whole."""
    if isinstance(moment, Tensor):
        return {"total": pack_triangle(moment)}
    if isinstance(moment, SecondMoment):
        return {"total": pack_triangle(moment.total)}
    stored = {"total": torch.stack([pack_triangle(block) for block in moment.total]), "counts": moment.counts.cpu()}
    if moment.sample is not None:
        stored |= dict(zip(("sample_keys", "sample_experts"), moment.sample, strict=True))
    return stored


def moment_of(tensors: Mapping[str, Tensor], count: int) -> LayerMoment:
    """The moment of what `moment_tensors` gave, on the CPU.

    Raises:
        KeyError: Something is missing.
        MomentsError: It does not belong together.
    """
    total = tensors["total"]
    if total.ndim == 1:
        return SecondMoment(unpack_triangle(total), count)
    sums = torch.stack([unpack_triangle(row) for row in total])
    sample = (tensors["sample_keys"], tensors["sample_experts"]) if "sample_keys" in tensors else None
    return ExpertSecondMoment(sums, tensors["counts"], count, sample)


def product_of(tensors: Mapping[str, Tensor], count: int) -> Product:
    """The product of what `moment_tensors` gave; see `moment_of`."""
    total = tensors["total"]
    return unpack_triangle(total) if total.ndim == 1 else _experts(moment_of(tensors, count))


def named(prefix: str, moment: LayerMoment | Product) -> dict[str, Tensor]:
    """`moment_tensors` among others of a file: the total under the prefix itself."""
    return {_name(prefix, part): tensor for part, tensor in moment_tensors(moment).items()}


def parts_of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `named` gave, from all tensors of a file."""
    return {part: tensors[name] for part in _PARTS if (name := _name(prefix, part)) in tensors}


def stored_bytes(d: int, accumulate: str, experts: int = 1) -> int:
    """Bytes of the totals of d × d matrices of that type."""
    return experts * packed_bytes(d, accumulate)


def _name(prefix: str, part: str) -> str:
    return prefix if part == "total" else f"{prefix}.{part}"


def _experts(moment: LayerMoment) -> ExpertSecondMoment:
    assert isinstance(moment, ExpertSecondMoment)  # its total has a row an expert
    return moment
