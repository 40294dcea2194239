"""The metric of a mixture of experts: the dense engine on stacked keys, held to plain float64 algebra."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from emendo.errors import InfeasibleError, InputError, MomentsError
from emendo.solve import (
    BlockMoment,
    Preservation,
    check_keys,
    output_power,
    prepare,
    preservation_cost,
    solve,
)
from emendo.solve.shares import remaining_shares

EXPERTS, WIDTH, D_OUT, N = 5, 6, 7, 8
D_IN = EXPERTS * WIDTH


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def routed(n: int, seed: int, k: int = 2) -> Tensor:
    """Stacked keys, each through k experts."""
    generator = rng(seed)
    keys = torch.zeros(n, EXPERTS, WIDTH, dtype=torch.float64)
    for row in keys:
        for expert in torch.randperm(EXPERTS, generator=generator)[:k]:
            row[expert] = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return keys.view(n, D_IN)


def moment(seed: int = 1, tokens: int = 400) -> BlockMoment:
    keys = routed(tokens, seed).view(tokens, EXPERTS, WIDTH)
    blocks = torch.einsum("tew,tev->ewv", keys, keys) / tokens
    return BlockMoment(blocks, (keys != 0).any(dim=2).sum(dim=0))


def delta(layer: object, keys: Tensor, residuals: Tensor, s: float) -> Tensor:
    return residuals.T @ solve(layer, keys, s=s).dual_keys  # type: ignore[arg-type]


CASES = [Preservation(), Preservation(weight=3.0, ridge=0.2), Preservation(weight=0.0, ridge=1.0)]


@pytest.mark.parametrize("s", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("preservation", CASES, ids=["C", "ridge", "identity"])
@pytest.mark.parametrize("earlier", [0, 4])
def test_blocks_are_the_dense_engine_on_stacked_keys(preservation: Preservation, s: float, earlier: int) -> None:
    C, K, R, P = moment(), routed(N, 2), torch.randn(N, D_OUT, generator=rng(3)).double(), routed(4, 4)[:earlier]
    blocks, dense = prepare(C, preservation), prepare(C.dense(), preservation)
    if earlier:
        blocks, dense = blocks.remembering(P, weight=0.7), dense.remembering(P, weight=0.7)
    found, expected = solve(blocks, K, s=s), solve(dense, K, s=s)
    torch.testing.assert_close(found.dual_keys, expected.dual_keys, rtol=0, atol=1e-10)
    torch.testing.assert_close(blocks.metric(), dense.metric(), rtol=0, atol=1e-12)
    torch.testing.assert_close(blocks.leverage(K), dense.leverage(K), rtol=1e-10, atol=0)
    assert found.stats.constraint_error == pytest.approx(expected.stats.constraint_error, abs=1e-10)
    if s > 0:
        primal = solve(blocks, K, s=s, form="primal")
        torch.testing.assert_close(primal.dual_keys, found.dual_keys, rtol=0, atol=1e-10)
    shares = [remaining_shares([one, one], [K, K], s)[0] for one in (blocks, dense)]
    torch.testing.assert_close(*shares, rtol=0, atol=1e-10)
    cost = preservation_cost(R, found.dual_keys, C)
    assert cost == pytest.approx(preservation_cost(R, found.dual_keys, C.dense()), rel=1e-12)
    weight = torch.randn(D_OUT, D_IN, generator=rng(5)).double()
    assert output_power(weight, C) == pytest.approx(output_power(weight, C.dense()), rel=1e-12)


def test_equality_holds_at_the_keys_and_only_reached_experts_are_written() -> None:
    C, K, R = moment(), routed(3, 2, k=1), torch.randn(3, D_OUT, generator=rng(3)).double()
    change = delta(prepare(C, Preservation()), K, R, 0.0)
    torch.testing.assert_close(K @ change.T, R, rtol=0, atol=1e-10)
    reached = (K.view(3, EXPERTS, WIDTH) != 0).any(dim=2).any(dim=0)
    assert 0 < reached.sum() < EXPERTS
    assert torch.equal((change.view(D_OUT, EXPERTS, WIDTH) != 0).any(dim=2).any(dim=0), reached)


def test_the_closed_form_of_a_single_expert() -> None:
    """ΔWₑ = U[Sₑ]ᵀ (Φₑ Aₑ⁻¹)[Sₑ] with D = Σ Φₑ Aₑ⁻¹ Φₑᵀ + s I and U = D⁻¹ R, written out expert by expert."""
    C, K, R, s = moment(), routed(N, 2), torch.randn(N, D_OUT, generator=rng(3)).double(), 0.5
    A = [block + 0.1 * torch.eye(WIDTH, dtype=torch.float64) for block in C.blocks]
    parts = K.view(N, EXPERTS, WIDTH).transpose(0, 1)
    D = sum((F @ torch.linalg.inv(a) @ F.T for F, a in zip(parts, A, strict=True)), s * torch.eye(N).double())
    U = torch.linalg.inv(D) @ R
    expected = []
    for F, a in zip(parts, A, strict=True):
        own = (F != 0).any(dim=1)
        expected.append(U[own].T @ F[own] @ torch.linalg.inv(a))
    found = delta(prepare(C, Preservation(ridge=0.1)), K, R, s)
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=0, atol=1e-10)


def test_the_gradient_of_the_least_squares_objective_is_zero() -> None:
    C, K, R, s = moment(), routed(N, 2), torch.randn(N, D_OUT, generator=rng(3)).double(), 0.5
    change = delta(prepare(C, Preservation(ridge=0.1)), K, R, s).requires_grad_()
    parts = change.view(D_OUT, EXPERTS, WIDTH)
    price = torch.einsum("oew,ewv,oev->", parts, C.blocks, parts) + 0.1 * change.square().sum()
    objective = s * price + (K @ change.T - R).square().sum()
    (gradient,) = torch.autograd.grad(objective, change)
    assert float(gradient.abs().max()) < 1e-11 * float(objective.detach())


def test_moeedits_iterations_come_to_the_closed_form() -> None:
    """Block coordinate descent on its objective, one expert at a time given the others, without its projections."""
    K, R, ridge = routed(N, 2), torch.randn(N, D_OUT, generator=rng(3)).double(), 0.5
    parts = K.view(N, EXPERTS, WIDTH)
    change = torch.zeros(D_OUT, EXPERTS, WIDTH, dtype=torch.float64)
    exact = delta(prepare(moment(), Preservation(weight=0.0, ridge=ridge)), K, R, 1.0).view_as(change)
    distances = []
    for _ in range(400):
        for expert in range(EXPERTS):
            own = parts[:, expert]
            missing = R - torch.einsum("new,oew->no", parts, change) + own @ change[:, expert].T
            change[:, expert] = missing.T @ own @ torch.linalg.inv(own.T @ own + ridge * torch.eye(WIDTH).double())
        distances.append(float((change - exact).norm() / exact.norm()))
    assert distances[0] > 1e-2, "one pass is not enough"
    assert distances[-1] < 1e-9


def test_a_sequence_with_history_is_one_shot() -> None:
    C, K, R, s = moment(), routed(N, 2), torch.randn(N, D_OUT, generator=rng(3)).double(), 0.5
    fresh = prepare(C, Preservation())
    total, layer = torch.zeros(D_OUT, D_IN, dtype=torch.float64), fresh
    for row in range(N):
        key = K[row : row + 1]
        total = total + delta(layer, key, R[row : row + 1] - key @ total.T, s)
        layer = layer.remembering(key, weight=1 / s)
    torch.testing.assert_close(total, delta(fresh, K, R, s), rtol=0, atol=1e-10)
    assert fresh.with_history(None).remembered is None  # type: ignore[attr-defined]
    forgotten = layer.with_history(None)
    torch.testing.assert_close(delta(forgotten, K, R, s), delta(fresh, K, R, s), rtol=0, atol=1e-12)


def test_history_of_dependent_and_of_many_keys() -> None:
    C, K = moment(), routed(3, 2)
    twice = prepare(C, Preservation()).remembering(K, weight=1.0).remembering(K, weight=1.0)
    many = prepare(C, Preservation()).remembering(routed(D_IN + 5, 6), weight=1.0)
    for layer, P in ((twice, torch.cat([K, K])), (many, routed(D_IN + 5, 6))):
        expected = prepare(C.dense(), Preservation()).remembering(P, weight=1.0)
        torch.testing.assert_close(layer.leverage(routed(N, 7)), expected.leverage(routed(N, 7)), rtol=1e-9, atol=0)


def test_experts_of_few_keys_are_drawn_to_the_mean_of_all() -> None:
    C = moment()
    counts = torch.tensor([0, WIDTH, 10**9, 1, 2])
    shrunk = replace(C, counts=counts).shrunk().blocks
    pooled = C.blocks.mean(dim=0)
    torch.testing.assert_close(shrunk[0], pooled)
    torch.testing.assert_close(shrunk[1], (C.blocks[1] + pooled) / 2)
    torch.testing.assert_close(shrunk[2], C.blocks[2], rtol=0, atol=1e-8)


def test_a_starved_expert_is_refused_by_name_under_equality_alone() -> None:
    C, K = replace(moment(), name="model.layers.3.mlp.experts"), routed(2, 2, k=1)
    starved = int((K[0].view(EXPERTS, WIDTH) != 0).any(dim=1).nonzero())
    counts = C.counts.clone()
    counts[starved] = 1
    layer = prepare(replace(C, counts=counts), Preservation())
    with pytest.raises(InfeasibleError) as caught:
        check_keys(layer, K, s=0, labels=["Eiffel", "Japan"])
    for words in ("model.layers.3.mlp.experts", f"expert {starved} (1 keys; Eiffel", "moments.multiple=40", "memit"):
        assert words in str(caught.value)
    check_keys(layer, K, s=1)
    counts[starved] = 2  # 6 / 4 = 1.5
    check_keys(prepare(replace(C, counts=counts), Preservation()), K, s=0)


def test_what_a_mixture_has_not_is_refused() -> None:
    C = moment()
    with pytest.raises(InputError, match=r"null space of each expert is not offered.*null_space=off"):
        prepare(C, Preservation(null_space="absolute"))
    with pytest.raises(InputError, match="remembering"):
        prepare(C, Preservation()).with_history(torch.eye(D_IN).double())
    with pytest.raises(InputError, match="one weight for all"):
        prepare(C, Preservation()).remembering(routed(1, 1), weight=1.0).remembering(routed(1, 1), weight=2.0)
    singular = replace(C, blocks=C.blocks.clone())
    singular.blocks[2, 0] = singular.blocks[2, :, 0] = 0.0
    with pytest.raises(InfeasibleError, match=r"expert 2 of 5.*not positive definite"):
        prepare(singular, Preservation())
    assert prepare(singular, Preservation(dead_ridge=1e-4)).added_ridge > 0
    broken = replace(C, blocks=C.blocks.clone())
    broken.blocks[1, 0, 3] = torch.nan
    with pytest.raises(MomentsError, match="expert 1"):
        prepare(broken, Preservation())
