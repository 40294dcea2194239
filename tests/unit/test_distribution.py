"""The split of an edit over layers as algebra: what the optimal shares add up to, and that nothing is cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.errors import InfeasibleError, MethodError
from emendo.solve import PreparedLayer, Preservation, prepare, solve
from emendo.solve.distribution import distribution_steps
from emendo.solve.shares import low_rank_splits, remaining_shares, remaining_splits
from tests.reference import emmet_delta, moment_with_condition

D_IN, D_OUT, N, LAYERS = 16, 6, 4, 3
STRENGTHS = (0.0, 0.3)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@dataclass(frozen=True)
class Case:
    """Layers with a metric A and keys K [n, d_in] each, and the residuals R [n, d_out] that they share."""

    A: list[Tensor]
    K: list[Tensor]
    R: Tensor

    @classmethod
    def make(cls, seed: int = 0, n: int = N) -> Case:
        # Layers of very different scale and condition: a split that did not look would pay for it.
        A = [4.0**layer * moment_with_condition(D_IN, 10.0**layer, seed + layer) for layer in range(LAYERS)]
        K = [randn(n, D_IN, seed=seed + 10 + layer) for layer in range(LAYERS)]
        return cls(A, K, randn(n, D_OUT, seed=seed + 20))

    @property
    def prepared(self) -> list[PreparedLayer]:
        return [prepare(A, Preservation()) for A in self.A]

    def update(self, layer: int, part: Tensor, s: float) -> Tensor:
        """Δ [d_out, d_in] that memorizes `part` at a layer, as EMMET's authors print it."""
        return emmet_delta(self.K[layer].T, part.T, self.A[layer], alpha=s)

    def cost(self, parts: Sequence[Tensor], s: float) -> float:
        """Σ tr(Δ A Δᵀ), and for s > 0 what each layer misses of its part, ‖Δ Kᵀ − Rₗᵀ‖² / s."""
        total = 0.0
        for layer, part in enumerate(parts):
            delta = self.update(layer, part, s)
            total += float(torch.trace(delta @ self.A[layer] @ delta.T))
            if s > 0:
                total += float((delta @ self.K[layer].T - part.T).square().sum()) / s
        return total


def contributions(shares: Sequence[Tensor | float], R: Tensor) -> list[Tensor]:
    """What the layers take, one after another, where all that is taken passes through."""
    missing, parts = R, []
    for share in shares:
        parts.append(share @ missing if isinstance(share, Tensor) else share * missing)
        missing = missing - parts[-1]
    return parts


def fixed_shares(distribution: Any) -> list[float]:
    steps = distribution_steps(distribution, range(LAYERS))
    return [step.share for step in steps if step.share is not None]


# ---- the optimal split -------------------------------------------------------------------------


@pytest.mark.parametrize("s", STRENGTHS)
def test_shares_add_up_to_everything(s: float) -> None:
    case = Case.make()
    shares = remaining_shares(case.prepared, case.K, s)
    close(shares[-1], torch.eye(N, dtype=torch.float64))
    close(torch.stack(contributions(shares, case.R)).sum(dim=0), case.R)


@pytest.mark.parametrize("s", STRENGTHS)
def test_shares_are_the_closed_form(s: float) -> None:
    """Rₗ = Dₗ (Σ D)⁻¹ R over all layers, with explicit inverses."""
    case = Case.make()
    D = [K @ torch.linalg.inv(A) @ K.T + s * torch.eye(N, dtype=K.dtype) for A, K in zip(case.A, case.K, strict=True)]
    for part, own in zip(contributions(remaining_shares(case.prepared, case.K, s), case.R), D, strict=True):
        close(part, own @ torch.linalg.inv(sum(D)) @ case.R)


@pytest.mark.parametrize("s", STRENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_no_other_split_is_cheaper(seed: int, s: float) -> None:
    case = Case.make(seed)
    best = contributions(remaining_shares(case.prepared, case.K, s), case.R)
    least = case.cost(best, s)
    for distribution in ("even", "sqrt"):
        assert case.cost(contributions(fixed_shares(distribution), case.R), s) > least * 1.01
    for layer in range(LAYERS):
        alone = [case.R if other == layer else torch.zeros_like(case.R) for other in range(LAYERS)]
        assert case.cost(alone, s) > least * 1.01, "single"
    for trial in range(20):
        shift = [randn(N, D_OUT, seed=100 * seed + 10 * trial + layer) for layer in range(LAYERS)]
        mean = sum(shift) / LAYERS
        for size in (1e-2, 1.0):
            parts = [part + size * (move - mean) for part, move in zip(best, shift, strict=True)]
            close(sum(parts, torch.zeros_like(case.R)), case.R)
            assert case.cost(parts, s) > least


def test_the_least_cost_is_one_price_for_all_layers() -> None:
    """tr(Rᵀ (Σ D)⁻¹ R): every further layer makes an edit cheaper."""
    case = Case.make()
    least = []
    for n in range(1, LAYERS + 1):
        fewer = Case(case.A[:n], case.K[:n], case.R)
        D = [K @ torch.linalg.inv(A) @ K.T for A, K in zip(fewer.A, fewer.K, strict=True)]
        least.append(fewer.cost(contributions(remaining_shares(fewer.prepared, fewer.K, 0.0), case.R), 0.0))
        assert least[-1] == pytest.approx(float(torch.trace(case.R.T @ torch.linalg.inv(sum(D)) @ case.R)), rel=1e-9)
    assert least == sorted(least, reverse=True)


@pytest.mark.parametrize("s", STRENGTHS)
def test_it_is_one_solve_on_concatenated_keys(s: float) -> None:
    """Under a block-diagonal metric; at strength L · s, since each of L layers may miss something of its part."""
    case = Case.make()
    parts = contributions(remaining_shares(case.prepared, case.K, s), case.R)
    whole = prepare(torch.block_diag(*case.A), Preservation())
    joint = case.R.T @ solve(whole, torch.cat(case.K, dim=1), s=LAYERS * s).dual_keys
    for layer, block in enumerate(joint.split(D_IN, dim=1)):
        own = solve(case.prepared[layer], case.K[layer], s=s).dual_keys
        close(parts[layer].T @ own, block)
        close(case.update(layer, parts[layer], s), block)


@pytest.mark.parametrize("s", STRENGTHS)
def test_apart_keys_are_shared_out_by_leverage(s: float) -> None:
    case = Case.make()
    lengths = [randn(N, seed=40 + layer).abs() + 0.1 for layer in range(LAYERS)]
    K = []
    for layer, A in enumerate(case.A):
        whitened = torch.linalg.qr(randn(D_IN, N, seed=50 + layer))[0].T * lengths[layer][:, None]
        K.append(whitened @ torch.linalg.cholesky(A).T)
    shares = remaining_shares(case.prepared, K, s)
    parts = contributions(shares, case.R)
    worth = torch.stack([layer.leverage(keys) for layer, keys in zip(case.prepared, K, strict=True)])
    close(worth, torch.stack(lengths).square())
    for layer in range(LAYERS):
        close(shares[layer], ((worth[layer] + s) / (worth[layer:] + s).sum(dim=0)).diag())
        close(parts[layer], ((worth[layer] + s) / (worth + s).sum(dim=0))[:, None] * case.R)


@pytest.mark.parametrize("n", [N, LAYERS * D_IN, 80])
def test_matrices_of_the_order_of_the_keys_give_the_same(n: int) -> None:
    case = Case.make(n=n)
    shares = remaining_shares(case.prepared, case.K, 0.3)
    missing = case.R
    for share, part in zip(shares, low_rank_splits(case.prepared, case.K, 0.3), strict=True):
        close(part(missing), share @ missing)
        missing = missing - share @ missing / 2  # what is missing need not be what the split expects


def test_no_matrix_of_the_order_of_many_requests_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emendo.solve.shares.remaining_shares", lambda *_: pytest.fail("a matrix of order n"))
    case = Case.make(n=LAYERS * D_IN + 1)
    assert len(remaining_splits(case.prepared, case.K, 0.3)) == LAYERS


def test_equal_layers_share_evenly() -> None:
    case = Case.make()
    same = Case([case.A[0]] * LAYERS, [case.K[0]] * LAYERS, case.R)
    for share, even in zip(remaining_shares(same.prepared, same.K, 0.0), fixed_shares("even"), strict=True):
        close(share, even * torch.eye(N, dtype=torch.float64))


def test_a_scale_that_all_layers_share_changes_nothing() -> None:
    case = Case.make()
    scaled = [prepare(A, Preservation(weight=1e4)) for A in case.A]
    for share, other in zip(
        remaining_shares(scaled, case.K, 0.0), remaining_shares(case.prepared, case.K, 0.0), strict=True
    ):
        close(share, other)


def test_each_layer_may_have_a_null_space_of_its_own() -> None:
    case = Case.make()
    rule = Preservation(weight=0.5, ridge=0.1, null_space="energy", threshold=0.4)
    prepared = [prepare(A, rule) for A in case.A]
    assert all(N < layer.dimensions < D_IN for layer in prepared)
    D = []
    for layer, K in zip(prepared, case.K, strict=True):
        assert layer.null_space is not None
        U = layer.null_space.basis
        A = U.T @ (0.5 * layer.moment + 0.1 * torch.eye(D_IN, dtype=K.dtype)) @ U
        D.append(K @ U @ torch.linalg.inv(A) @ U.T @ K.T)
    for part, own in zip(contributions(remaining_shares(prepared, case.K, 0.0), case.R), D, strict=True):
        close(part, own @ torch.linalg.inv(sum(D)) @ case.R)


def test_keys_dependent_at_every_layer_are_refused() -> None:
    case = Case.make()
    twins = [torch.cat([K[:3], K[:1]]) for K in case.K]
    with pytest.raises(InfeasibleError, match="spread them over several batches"):
        remaining_shares(case.prepared, twins, 0.0)
    shares = remaining_shares(case.prepared, twins, 1.0)
    close(torch.stack(contributions(shares, case.R)).sum(dim=0), case.R)


def test_an_unknown_distribution_is_not_even() -> None:
    with pytest.raises(MethodError, match=r"unknown distribution 'evn'; did you mean 'even'.*--set distribution"):
        distribution_steps("evn", [1, 2])  # type: ignore[arg-type]
