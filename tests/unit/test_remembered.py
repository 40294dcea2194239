"""Earlier keys in a factorised metric: the same as factorising A + w PᵀP, at a cost that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.errors import InputError
from emendo.solve import PreparedLayer, Preservation, extend_history, prepare, solve
from emendo.solve import metric as metric_module
from tests import reference
from tests.every import every

D_IN = 48  # blocks of three keys
NULL = Preservation(weight=2.0, ridge=0.1, null_space="energy", threshold=0.3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def C() -> Tensor:  # noqa: N802
    return reference.moment_with_condition(D_IN, 1e3, seed=5)


def factorised(C: Tensor, preservation: Preservation, keys: Tensor, weight: float) -> PreparedLayer:
    return prepare(C, preservation, history=extend_history(None, keys, weight=weight))


@every("preservation", [Preservation(20.0), NULL], ids=["all directions", "null space"])
@every("count", [1, 2, 3, 4, 7, 60])
@every("weight", [1.0, 1e6])
def test_it_is_the_metric_of_the_history(C: Tensor, preservation: Preservation, count: int, weight: float) -> None:
    P, K = randn(count, D_IN, seed=1), randn(4, D_IN, seed=2)
    found = prepare(C, preservation).remembering(P, weight=weight)
    expected = factorised(C, preservation, P, weight)
    rounding = 1e-16 * D_IN * expected.condition  # of the factorisation; the other form has less of it
    torch.testing.assert_close(found.leverage(K), expected.leverage(K), rtol=rounding, atol=0)
    both = [layer.unwhiten(layer.whiten(K)) for layer in (found, expected)]
    torch.testing.assert_close(*both, rtol=0, atol=rounding * float(both[1].abs().max()))
    largest = float(expected.metric().abs().max())
    torch.testing.assert_close(found.metric(), expected.metric(), rtol=0, atol=1e-13 * largest)
    for s in (0.0, 1.0):
        one, other = (solve(layer, K, s=s).dual_keys for layer in (found, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=rounding * float(other.abs().max()))
    assert found.holds_history
    assert not found.with_history(None).holds_history


def test_the_result_depends_on_the_keys_and_their_order_alone(C: Tensor) -> None:
    """Bit for bit, so that a replayed sequence gives the same updates however it was divided."""
    P, K = randn(20, D_IN, seed=1), randn(4, D_IN, seed=2)
    whole = prepare(C, Preservation()).remembering(P, weight=0.5)
    for sizes in ([1] * 20, [2, 9, 9], [19, 1]):
        parts = prepare(C, Preservation())
        for rows in P.split(sizes):
            parts = parts.remembering(rows, weight=0.5)
        assert torch.equal(parts.whiten(K), whole.whiten(K))
        assert torch.equal(solve(parts, K, s=0.0).dual_keys, solve(whole, K, s=0.0).dual_keys)


def test_keys_may_count_differently(C: Tensor) -> None:
    P, K = randn(5, D_IN, seed=1), randn(4, D_IN, seed=2)
    found = prepare(C, Preservation()).remembering(P[:2], weight=3.0).remembering(P[2:], weight=0.25)
    history = extend_history(extend_history(None, P[:2], weight=3.0), P[2:], weight=0.25)
    torch.testing.assert_close(
        found.leverage(K), prepare(C, Preservation(), history=history).leverage(K), rtol=1e-10, atol=0
    )


def test_factorisations_are_one_in_a_block_of_keys(C: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], metric_module._factorised

    def counted(*args: Any) -> PreparedLayer:
        made.append(1)
        return original(*args)

    monkeypatch.setattr(metric_module, "_factorised", counted)
    layer = prepare(C, Preservation())
    for key in randn(30, D_IN, seed=1):
        layer = layer.remembering(key[None], weight=1.0)
    assert len(made) == 1 + 30 // 3


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_has_to_be_positive(C: Tensor, weight: float) -> None:
    with pytest.raises(InputError):
        prepare(C, Preservation()).remembering(randn(1, D_IN), weight=weight)
