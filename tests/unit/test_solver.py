"""The solver against the published formulas. What ties the methods together is in test_identities.

Every expected value comes from tests/reference.py: naive float64 formulas where the moment is well
conditioned, exact rational arithmetic where it is not.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.solve import (
    Preservation,
    extend_history,
    frobenius_norm,
    prepare,
    preservation_cost,
    solve,
)
from emendo.solve.preservation import preservation_metric
from tests import reference
from tests.every import every

EPS = torch.finfo(torch.float64).eps
D_IN, D_OUT = 24, 7


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small only lose time to a second thread, a lot of it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="C")
def fixture_c() -> torch.Tensor:
    return reference.moment_with_condition(D_IN, 1e3, seed=5)


@pytest.fixture(name="K")
def fixture_k() -> torch.Tensor:
    return randn(6, D_IN, seed=1)


@pytest.fixture(name="R")
def fixture_r() -> torch.Tensor:
    return randn(6, D_OUT, seed=2)


def dual_keys(C: torch.Tensor, K: torch.Tensor, *, s: float, weight=1.0, ridge=0.0, **options):
    return solve(prepare(C, Preservation(weight, ridge)), K, s=s, **options).dual_keys


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (torch.linalg.matrix_norm(actual - expected) / torch.linalg.matrix_norm(expected)).item()


# --- the contract: every form, strength, ridge, shape and condition, against exact arithmetic -----


@cache
def exact_case(n: int, condition: float, ridge: float, s: float):
    C, K = reference.moment_with_condition(6, condition, seed=n), randn(n, 6, seed=n + 100)
    return C, K, reference.exact_dual_keys(K, preservation_metric(Preservation(1.0, ridge), C), s)


CONTRACT = [  # equality has no primal form and takes at most d_in keys: see test_solver_errors
    (form, s, n)
    for form in ("auto", "dual", "primal")
    for s in (0.0, 1e-2, 1.0, 1e4)
    for n in (1, 3, 6, 15)
    if s > 0.0 or (form != "primal" and n <= 6)
]


@every("condition", [1e1, 1e6, 1e10])
@every("ridge", [0.0, 0.1])
@every(("form", "s", "n"), CONTRACT)
def test_contract(form, s, n, ridge, condition):
    C, K, expected = exact_case(n, condition, ridge, s)
    solution = solve(prepare(C, Preservation(1.0, ridge)), K, s=s, form=form)
    stats = solution.stats
    # Both conditions are in the 1-norm and A's own rounding counts too, hence the factor.
    bound = 10 * EPS * (stats.metric_condition + stats.system_condition)
    assert relative(solution.dual_keys, expected) <= bound
    if s == 0.0:
        assert stats.constraint_error <= 1e-12, "equality holds whatever the condition"
    assert stats.form == (form if form != "auto" else "primal" if n > 6 else "dual")
    assert (stats.n, stats.d_in, stats.s) == (n, 6, s)


@pytest.mark.parametrize("s", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("n", [1, 10, 24, 60])
def test_both_forms_agree(C, n, s):
    K = randn(n, D_IN, seed=n)
    dual = dual_keys(C, K, s=s, form="dual")
    assert relative(dual_keys(C, K, s=s, form="primal"), dual) <= 1e-8


def test_refinement_takes_out_what_an_ill_conditioned_system_costs():
    """23 keys in 24 dimensions under a condition of 1e10: a plain solve errs by 1e-7."""
    C, K = reference.moment_with_condition(24, 1e10, seed=0), randn(23, 24, seed=1)
    stats = solve(prepare(C, Preservation()), K, s=0.0).stats
    assert stats.system_condition > 1e9
    assert stats.constraint_error < 1e-13


@pytest.mark.parametrize("s", [1e-3, 1.0])
def test_refinement_serves_least_squares_too(s):
    """Against exact arithmetic: a plain solve errs by 1e-8 at s = 1e-3, one without steps on the inverse by 1e-9."""
    C, K = reference.moment_with_condition(12, 1e10, seed=0), randn(11, 12, seed=1)
    expected = reference.exact_dual_keys(K, C, s)
    assert relative(dual_keys(C, K, s=s, form="dual"), expected) <= 1e-11


# --- published methods ----------------------------------------------------------------------------


def test_original_rome_averages_the_key_but_holds_at_the_clean_one(C):
    clean = randn(1, D_IN)
    averaged = clean + 0.3 * randn(1, D_IN, seed=3)
    r = randn(1, D_OUT, seed=4)
    solution = solve(prepare(C, Preservation()), averaged, s=0.0, constraint_keys=clean)
    delta = r.T @ solution.dual_keys
    assert relative(delta, reference.rome_delta(r[0], averaged[0], clean[0], C)) <= 1e-12
    torch.testing.assert_close(delta @ clean.T, r.T)
    assert not torch.allclose(delta @ averaged.T, r.T, rtol=1e-2)


def test_a_batch_with_two_kinds_of_keys_holds_at_the_constraint_keys(C, K, R):
    clean = K + 0.1 * randn(*K.shape, seed=3)
    solution = solve(prepare(C, Preservation()), K, s=0.0, constraint_keys=clean)
    torch.testing.assert_close(R.T @ solution.dual_keys @ clean.T, R.T, rtol=1e-10, atol=1e-10)
    assert solution.stats.constraint_error <= 1e-12
    # Its rows stay in the span of K A⁻¹, the averaged keys' own.
    span = torch.linalg.solve(C, K.T)
    rest = solution.dual_keys.T - span @ torch.linalg.lstsq(span, solution.dual_keys.T).solution
    assert rest.norm() <= 1e-10 * solution.dual_keys.norm()


def test_two_kinds_of_keys_that_are_equal_change_nothing(C, K):
    mixed = dual_keys(C, K, s=0.0, constraint_keys=K.clone())
    assert relative(mixed, dual_keys(C, K, s=0.0)) <= 1e-12


@pytest.mark.parametrize("lam", [1e-2, 1.0, 1.5e4])
def test_memit(C, K, R, lam):
    expected = reference.memit_delta(K.T, R.T, C, lam=lam)
    assert relative(R.T @ dual_keys(C, K, s=1.0, weight=lam), expected) <= 1e-11


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_emmet_as_published(C, K, R, alpha):
    expected = reference.emmet_delta(K.T, R.T, C, alpha=alpha, weight=1e3, ridge=2.0)
    assert relative(R.T @ dual_keys(C, K, s=alpha, weight=1e3, ridge=2.0), expected) <= 1e-11


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_memit_is_where_its_gradient_vanishes(C, K, R, form):
    delta = R.T @ dual_keys(C, K, s=1.0, weight=50.0, ridge=3.0, form=form)
    gradient = reference.memit_gradient(delta, K.T, R.T, C, lam=50.0, ridge=3.0)
    assert gradient.norm() <= 1e-12 * (R.T @ K).norm()


def test_equality_is_exact_and_cheapest(C, K, R):
    delta = R.T @ dual_keys(C, K, s=0.0)
    W = randn(D_OUT, D_IN, seed=9)
    torch.testing.assert_close((W + delta) @ K.T, W @ K.T + R.T, rtol=1e-8, atol=1e-8)
    free = torch.eye(D_IN, dtype=torch.float64) - K.T @ torch.linalg.pinv(K.T)
    cost = reference.preservation_cost(delta, C)
    for seed in range(20):
        change = randn(D_OUT, D_IN, seed=seed) @ free
        torch.testing.assert_close((delta + change) @ K.T, R.T, rtol=1e-8, atol=1e-8)
        for size in (1e-3, 1.0):
            assert reference.preservation_cost(delta + size * change, C) > cost
        # First order: the change is C-orthogonal to the update.
        assert abs(torch.trace(delta @ C @ change.T)) <= 1e-10 * delta.norm() * change.norm()


@pytest.mark.parametrize("s", [0.0, 1.0])
@pytest.mark.parametrize("form", ["auto", "dual"])
def test_no_requests_give_no_update(C, s, form):
    solution = solve(prepare(C, Preservation()), torch.empty(0, D_IN), s=s, form=form)
    assert solution.dual_keys.shape == (0, D_IN)
    assert solution.dual_keys.dtype == torch.float64
    assert solution.stats.constraint_error == 0.0
    assert preservation_cost(torch.empty(0, D_OUT), solution.dual_keys, C) == 0.0
    assert frobenius_norm(torch.empty(0, D_OUT), solution.dual_keys) == 0.0


# --- history --------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1.0, 0.25])
def test_history_with_weight_one_over_s_is_sequential_memit(C, K, R, s):
    previous = randn(4, D_IN, seed=8)
    layer = prepare(C, Preservation(20.0), history=extend_history(None, previous, weight=1 / s))
    delta = R.T @ solve(layer, K, s=s).dual_keys
    expected = reference.memit_delta(K.T, R.T, C, lam=s * 20.0, previous=previous.T)
    assert relative(delta, expected) <= 1e-11


# --- invariances, for any size --------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 12), st.integers(12, 30), st.integers(0, 10_000))
strengths = st.sampled_from([0.0, 1e-3, 1.0, 1e3])
fast = settings(max_examples=20, deadline=None)


def case(size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    n, d_in, seed = size
    return reference.moment_with_condition(d_in, 1e4, seed), randn(n, d_in, seed=seed)


@fast
@given(sizes, st.floats(1e-6, 1e6))
def test_equality_ignores_the_scale_of_the_moment(size, scale):
    C, K = case(size)
    assert relative(dual_keys(scale * C, K, s=0.0), dual_keys(C, K, s=0.0)) <= 1e-9


@fast
@given(sizes, strengths, st.floats(1e-3, 1e3))
def test_strength_times_moment_is_all_that_counts(size, s, scale):
    C, K = case(size)
    left = dual_keys(C, K, s=s, weight=scale, ridge=0.1 * scale)
    assert relative(left, dual_keys(C, K, s=s * scale, weight=1.0, ridge=0.1)) <= 1e-9


@fast
@given(sizes, strengths, st.randoms(use_true_random=False))
def test_the_order_of_requests_only_orders_the_rows(size, s, random):
    C, K = case(size)
    order = random.sample(range(len(K)), len(K))
    assert relative(dual_keys(C, K[order], s=s), dual_keys(C, K, s=s)[order]) <= 1e-9


@fast
@given(sizes, strengths)
def test_a_change_of_basis_changes_the_basis_only(size, s):
    C, K = case(size)
    U, _ = torch.linalg.qr(randn(K.shape[1], K.shape[1], seed=size[2] + 1))
    rotated = U.T @ C @ U
    rotated = (rotated + rotated.T) / 2
    assert relative(dual_keys(rotated, K @ U, s=s), dual_keys(C, K, s=s) @ U) <= 1e-8


@fast
@given(sizes, strengths)
def test_more_preservation_memorizes_less(size, s):
    C, K = case(size)
    weaker = solve(prepare(C, Preservation(1.0)), K, s=s).stats
    stronger = solve(prepare(C, Preservation(10.0)), K, s=s).stats
    assert stronger.memorized <= weaker.memorized + 1e-9
    assert stronger.constraint_error >= weaker.constraint_error - 1e-9
    assert 0.0 <= weaker.memorized <= 1.0 + 1e-9


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 24, 60])
@pytest.mark.parametrize("s", [0.5, 100.0])
def test_constraint_error_and_memorized_share_are_measured_on_the_result(C, n, s):
    K = randn(n, D_IN, seed=n)
    solution = solve(prepare(C, Preservation()), K, s=s)
    fit = solution.dual_keys @ K.T
    gap = fit - torch.eye(n, dtype=torch.float64)
    assert solution.stats.constraint_error == pytest.approx(gap.norm().item() / math.sqrt(n))
    assert solution.stats.memorized == pytest.approx(fit.trace().item() / n)


def test_a_single_request_costs_one_over_its_leverage(C):
    k, r = randn(1, D_IN), randn(1, D_OUT)
    layer = prepare(C, Preservation())
    cost = preservation_cost(r, solve(layer, k, s=0.0).dual_keys, C)
    assert cost == pytest.approx((r.square().sum() / layer.leverage(k)[0]).item())


@pytest.mark.parametrize("n", [1, 5, 24])
@pytest.mark.parametrize("d_out", [1, 7, 40])
def test_costs_equal_those_of_the_dense_update(C, n, d_out):
    R, Q = randn(n, d_out), randn(n, D_IN, seed=1)
    delta = R.T @ Q
    assert preservation_cost(R, Q, C) == pytest.approx(reference.preservation_cost(delta, C))
    assert frobenius_norm(R, Q) == pytest.approx(delta.norm().item())


def test_costs_survive_cancelling_factors(C):
    """Two huge opposite contributions leave a small update; n×n Gram matrices would lose it."""
    R, Q = randn(2, D_OUT), randn(2, D_IN, seed=1)
    R, Q = torch.stack([R[0], R[0]]), torch.stack([1e6 * Q[0], -1e6 * Q[0] + 1e-3 * Q[1]])
    delta = torch.outer(R[0], Q[0] + Q[1])
    assert frobenius_norm(R, Q) == pytest.approx(delta.norm().item(), rel=1e-6)


def test_inputs_stay_as_they_were_and_runs_repeat_bit_for_bit(C, K):
    layer, before = prepare(C, Preservation()), (C.clone(), K.clone())
    cholesky = layer.cholesky.clone()
    first = [solve(layer, K, s=s, form=f).dual_keys for s, f in ((0.0, "dual"), (1.0, "primal"))]
    second = [solve(layer, K, s=s, form=f).dual_keys for s, f in ((0.0, "dual"), (1.0, "primal"))]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(C, before[0])
    assert torch.equal(K, before[1])
    assert torch.equal(layer.cholesky, cholesky)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_and_single_precision_inputs_are_solved_in_double(C, K, dtype):
    C, K = C.float(), K.to(dtype)
    solution = solve(prepare(C, Preservation()), K, s=0.0)
    assert solution.dual_keys.dtype == torch.float64
    assert relative(solution.dual_keys, dual_keys(C.double(), K.double(), s=0.0)) == 0.0
    assert solution.stats.constraint_error <= 1e-12


def test_no_gradient_is_recorded(C, K):
    assert not dual_keys(C, K.requires_grad_(), s=1.0).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("s", "n"), [(0.0, 6), (1.0, 6), (1.0, 60)])
def test_the_gpu_gives_the_same_dual_keys(C, s, n):
    K = randn(n, D_IN, seed=n)
    on_gpu = solve(prepare(C.cuda(), Preservation()), K, s=s).dual_keys
    assert on_gpu.is_cuda
    assert on_gpu.dtype == torch.float64
    assert relative(on_gpu.cpu(), dual_keys(C, K, s=s)) <= 1e-10
