"""SecondMoment against a float64 oracle, and its monoid laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.errors import InputError, MomentsError, NumericalError
from emendo.statistics import SecondMoment
from emendo.statistics.second_moment import Accumulate

D = 12


def keys(n: int, seed: int = 0, d: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, d)  # components of very different size, as real keys have
    return torch.randn(n, d, generator=generator) * scale


def moment(block: torch.Tensor, accumulate: Accumulate = "float64") -> SecondMoment:
    result = SecondMoment.empty(block.shape[1], accumulate=accumulate)
    result.add(block)
    return result


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation of an entry relative to the geometric mean of its two diagonal entries."""
    size = expected.diagonal().sqrt()
    return float(((found - expected).abs() / (size[:, None] * size[None])).max())


@pytest.mark.parametrize(("accumulate", "tolerance"), [("float64", 1e-6), ("float32", 2e-6)])
def test_mean_is_the_float64_oracle(accumulate: Accumulate, tolerance: float) -> None:
    block = keys(4000)
    found = SecondMoment.empty(D, accumulate=accumulate)
    for part in block.split(700):
        found.add(part)
    oracle = block.double().T @ block.double() / len(block)
    assert found.count == 4000
    assert found.mean().dtype == torch.float64
    assert relative(found.mean(), oracle) < tolerance


def test_float64_keys_are_multiplied_in_float64() -> None:
    block = keys(1000).double()
    assert relative(moment(block).mean(), block.T @ block / 1000) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_keys_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    block = keys(500).to(dtype)
    oracle = block.double().T @ block.double() / 500
    assert relative(moment(block).mean(), oracle) < 1e-6


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_merged_shards_equal_one_pass(sizes: list[int], seed: int) -> None:
    shards = [keys(n, seed + i) for i, n in enumerate(sizes)]
    merged = SecondMoment.empty(D)
    for shard in shards:
        merged = merged + moment(shard)
    whole = moment(torch.cat(shards))
    assert merged.count == whole.count == sum(sizes)
    if whole.count:
        assert relative(merged.mean(), whole.mean()) < 1e-6
    assert torch.equal(merged.total, merged.total.T)


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_monoid_laws(accumulate: Accumulate) -> None:
    a, b, c = (moment(keys(50 + i, i), accumulate) for i in range(3))
    empty = SecondMoment.empty(D, accumulate=accumulate)
    assert torch.equal((a + b).total, (b + a).total)
    assert torch.equal((a + empty).total, a.total)
    assert torch.equal((empty + a).total, a.total)
    assert (a + empty).count == a.count
    tolerance = 1e-14 if accumulate == "float64" else 1e-6
    assert relative(((a + b) + c).total, (a + (b + c)).total) < tolerance


def test_merge_leaves_its_operands_alone() -> None:
    a, b = moment(keys(5)), moment(keys(6, 1))
    before = a.total.clone()
    _ = a + b
    assert torch.equal(a.total, before)
    assert a.count == 5


def test_the_sum_is_exactly_symmetric_and_positive() -> None:
    found = moment(keys(333, d=97))
    assert torch.equal(found.total, found.total.T)
    assert float(torch.linalg.eigvalsh(found.mean())[0]) > -1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_keys_that_are_not_finite_are_refused_and_not_counted(value: float) -> None:
    found = moment(keys(9))
    before = found.total.clone()
    bad = keys(9)
    bad[3, 7] = value
    with pytest.raises(NumericalError, match="component 7"):
        found.add(bad)
    assert torch.equal(found.total, before)
    assert found.count == 9


def test_adding_keeps_no_graph_and_no_alias() -> None:
    block = keys(4).requires_grad_()
    found = moment(block)
    assert not found.total.requires_grad


def test_no_keys_add_nothing() -> None:
    found = moment(keys(4))
    before = found.total.clone()
    found.add(keys(0))
    assert found.count == 4
    assert torch.equal(found.total, before)


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(MomentsError, match=r"expected keys of shape \[n, 12\], found \[3, 5\]"):
        SecondMoment.empty(D).add(torch.zeros(3, 5))
    with pytest.raises(MomentsError, match="collect it first"):
        SecondMoment.empty(D).mean()
    with pytest.raises(MomentsError, match="cannot merge"):
        _ = SecondMoment.empty(3) + SecondMoment.empty(4)
    with pytest.raises(MomentsError, match="cannot merge"):
        _ = SecondMoment.empty(3) + SecondMoment.empty(3, accumulate="float32")
    with pytest.raises(MomentsError, match="square matrix"):
        SecondMoment(torch.zeros(3, 4), 0)
    with pytest.raises(InputError, match="'float64' or 'float32'"):
        SecondMoment.empty(3, accumulate="bfloat16")  # type: ignore[arg-type]
