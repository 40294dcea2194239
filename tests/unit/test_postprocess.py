"""Post-steps on an update, against dense float64 oracles, and what each of them promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.errors import InputError
from emendo.solve import Preservation, cap_norm, frobenius_norm, prepare, prune, rect, retained, solve
from emendo.solve.spectral import spectral_norm
from tests import reference
from tests.every import every

D_IN, D_OUT = 14, 9


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture(name="W")
def fixture_w() -> torch.Tensor:
    return randn(D_OUT, D_IN, seed=3)


def factors(n: int, size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return size * randn(n, D_OUT, seed=n), randn(n, D_IN, seed=n + 50)


def dense(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return pair[0].T @ pair[1]


# --- RECT -----------------------------------------------------------------------------------------


@every("keep", [0.05, 0.4, 0.5, 0.999, 1.0])
@every("shape", [(9, 14), (3, 7), (1, 6), (1, 1)])
def test_rect_keeps_the_entries_that_change_the_most(keep, shape):
    delta, weight = randn(*shape), randn(*shape, seed=3)
    found = rect(delta, weight, keep)
    assert torch.equal(dense(found), reference.rect_delta(delta, weight, keep))
    assert found[0].shape == (shape[0], shape[0])
    assert found[1].shape == shape


def test_rect_keeps_its_share_and_touches_nothing_else(W):
    delta = randn(D_OUT, D_IN)
    before = delta.clone()
    kept = rect(delta, W)[1]
    assert int((kept != 0).sum()) == math.floor(0.4 * (delta.numel() - 1)) + 1
    assert torch.equal(kept[kept != 0], delta[kept != 0])
    assert torch.equal(delta, before)
    change, rest = (delta / W).abs(), kept == 0
    assert change[~rest].min() > change[rest].max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rect_with_everything_kept_is_the_update_bit_for_bit(W, dtype):
    delta = randn(D_OUT, D_IN).to(dtype)
    residuals, kept = rect(delta, W, keep=1.0)
    assert torch.equal(kept, delta)
    assert torch.equal(residuals.T @ kept, delta)
    assert kept.dtype == dtype


def test_rect_of_weights_that_are_zero():
    """An entry of -1e-8 makes the denominator vanish; where nothing changes, that is no change."""
    delta, weight = randn(2, 3), torch.full((2, 3), -1e-8, dtype=torch.float64)
    weight[1] = 1.0
    delta[0, 0] = 0.0
    kept = rect(delta, weight, keep=2 / 6)[1]
    assert kept.isfinite().all()
    assert int((kept[0] != 0).sum()) == 2


# --- PRUNE ----------------------------------------------------------------------------------------


@every("n", [1, 4, 9, 12, 14, 40])
@every("size", [0.1, 1.0, 1e3])
@every("base", [math.e, 1.2, 10.0])
def test_prune_is_the_dense_formula(W, n, size, base):
    pair = factors(n, size)
    found = prune(*pair, W, base)
    expected = reference.prune_delta(dense(pair), W, base)
    torch.testing.assert_close(dense(found), expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_prune_conditions_the_total_against_the_untouched_weight(W):
    """Two updates, each small, that add up in one direction: each alone is left as it is, their sum is not."""
    k, r = randn(1, D_IN), randn(1, D_OUT, seed=1)
    r *= 0.7 * torch.linalg.svdvals(W)[0] / (r.norm() * k.norm())
    once, twice = prune(r, k, W), prune(torch.cat([r, r]), torch.cat([k, k]), W)
    assert torch.equal(dense(once), r.T @ k)
    assert torch.linalg.svdvals(dense(twice))[0] < 1.4 * torch.linalg.svdvals(W)[0] - 0.1
    assert twice[0].shape == (2, D_OUT)


@pytest.mark.parametrize("n", [1, 4, 30])
def test_prune_is_the_identity_below_the_weights_largest_singular_value(W, n):
    residuals, dual_keys = factors(n)
    scale = 0.999 * torch.linalg.svdvals(W)[0] / torch.linalg.svdvals(residuals.T @ dual_keys)[0]
    found = prune(scale * residuals, dual_keys, W)
    assert torch.equal(found[0], scale * residuals)
    assert torch.equal(found[1], dual_keys)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.floats(1e-2, 1e3), st.sampled_from([1.2, math.e, 10.0]), st.integers(0, 1000))
def test_prune_never_raises_a_singular_value_of_a_weight_that_is_large_enough(n, size, base, seed):
    """Large enough is s_max ≥ 1/ln(b), where f has a slope of at most 1; its order of values never changes."""
    weight = randn(D_OUT, D_IN, seed=seed)
    weight *= 1.01 / math.log(base) / torch.linalg.svdvals(weight)[0]
    pair = size * randn(n, D_OUT, seed=seed + 1), randn(n, D_IN, seed=seed + 2)
    before, after = torch.linalg.svdvals(dense(pair)), torch.linalg.svdvals(dense(prune(*pair, weight, base)))
    assert (after <= before * (1 + 1e-9) + 1e-9).all()
    assert len(prune(*pair, weight, base)[0]) <= max(n, D_OUT)


def test_prune_raises_singular_values_where_the_published_formula_does(W):
    """Documented, not wished for: the formula depends on the units of the weights."""
    small = 0.5 * W / torch.linalg.svdvals(W)[0]
    k, r = randn(1, D_IN), randn(1, D_OUT, seed=1)
    r *= 0.6 / (r.norm() * k.norm())
    assert torch.linalg.svdvals(dense(prune(r, k, small)))[0] == pytest.approx(math.log(0.6 / 0.5) + 0.5)
    assert math.log(0.6 / 0.5) + 0.5 > 0.6


def test_prune_of_nothing_is_nothing(W):
    residuals, dual_keys = prune(torch.empty(0, D_OUT), torch.empty(0, D_IN), W)
    assert residuals.shape == (0, D_OUT)
    assert dual_keys.shape == (0, D_IN)


# --- the norm cap ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.floats(1e-3, 1e3), st.floats(1e-4, 10.0))
def test_the_cap_holds_and_never_increases(n, size, ratio):
    W, pair = randn(D_OUT, D_IN, seed=3), factors(n, size)
    found = cap_norm(*pair, W, ratio)
    before, after = frobenius_norm(*pair), frobenius_norm(*found)
    most = ratio * W.norm().item()
    assert after <= min(before, most) * (1 + 1e-12)
    if before <= most:
        assert torch.equal(found[0], pair[0])
    else:
        assert after == pytest.approx(most)
        torch.testing.assert_close(dense(found), dense(pair) * most / before)
    assert torch.equal(found[1], pair[1])


# --- what is left of the edits --------------------------------------------------------------------


def test_an_update_with_equality_retains_everything_until_it_is_scaled(W):
    K, R = randn(5, D_IN), randn(5, D_OUT, seed=1)
    Q = solve(prepare(reference.moment_with_condition(D_IN, 1e2, 0), Preservation()), K, s=0.0).dual_keys
    torch.testing.assert_close(retained(R, Q, K, R), torch.ones(5).double())
    ratio = 0.25 * frobenius_norm(R, Q) / W.norm().item()
    torch.testing.assert_close(retained(*cap_norm(R, Q, W, ratio), K, R), torch.full((5,), 0.25).double())
    torch.testing.assert_close(retained(*rect(R.T @ Q, W, keep=1.0), K, R), torch.ones(5).double())
    left = retained(*rect(R.T @ Q, W, keep=0.4), K, R)
    assert (left < 0.99).all()


def test_retained_is_the_projection_on_what_was_wanted(W):
    pair, K, R = factors(3), randn(4, D_IN), randn(4, D_OUT, seed=1)
    expected = [(dense(pair) @ k) @ r / (r @ r) for k, r in zip(K, R, strict=True)]
    torch.testing.assert_close(retained(*pair, K.float(), R.float()), torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert retained(*pair, K, R).dtype == torch.float64
    torch.testing.assert_close(retained(*pair, K, -R), -torch.stack(expected))
    R[2] = 0.0
    assert retained(*pair, K, R).isnan().tolist() == [False, False, True, False]


# --- the spectral norm ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (30, 80), (80, 30), (200, 200)])
def test_the_spectral_norm_of_random_matrices(shape):
    matrix = randn(*shape)
    true = torch.linalg.svdvals(matrix)[0].item()
    state = torch.get_rng_state()
    assert true * (1 - 2e-8) <= spectral_norm(matrix) <= true * (1 + 1e-12)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("gap", [0.0, 1e-10, 1e-6, 1e-3, 1.0])
def test_the_spectral_norm_where_the_largest_values_crowd(gap):
    U, V = torch.linalg.qr(randn(60, 60))[0], torch.linalg.qr(randn(90, 60, seed=1))[0]
    values = torch.linspace(1, 2, 60, dtype=torch.float64)
    values[-3:] = torch.tensor([2.0, 2.0, 2.0 + gap], dtype=torch.float64)
    assert spectral_norm((U * values) @ V.T) == pytest.approx(2.0 + gap, rel=2e-8)


def test_the_spectral_norm_of_low_rank_and_of_zero():
    u, v = randn(40, 2), randn(50, 2, seed=1)
    assert spectral_norm(u @ v.T) == pytest.approx(torch.linalg.svdvals(u @ v.T)[0].item(), rel=1e-12)
    assert spectral_norm(torch.zeros(4, 5)) == 0.0
    assert spectral_norm(torch.eye(6).bfloat16()) == pytest.approx(1.0, rel=1e-14)


# --- what is refused ------------------------------------------------------------------------------


def test_arguments_out_of_range_are_refused(W):
    pair = factors(3)
    for keep in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="expected a share above 0 and at most 1"):
            rect(W, W, keep)
    for base in (1.0, 0.5, math.inf, math.nan):
        with pytest.raises(InputError, match=r"log_base is .*above 1"):
            prune(*pair, W, base)
    for ratio in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match=r"ratio is .*above 0"):
            cap_norm(*pair, W, ratio)
    with pytest.raises(InputError, match="untouched weight is zero"):
        prune(*pair, torch.zeros(D_OUT, D_IN))


def test_shapes_that_do_not_belong_together_are_refused(W):
    R, Q = factors(3)
    for found in ((prune, (R, Q, W.T)), (cap_norm, (R, Q[:2], W, 1.0)), (cap_norm, (Q, R, W, 1.0))):
        with pytest.raises(InputError, match="are no update of a weight"):
            found[0](*found[1])
    with pytest.raises(InputError, match="expected one shape"):
        rect(W, W.T)
    with pytest.raises(InputError, match="do not fit an update"):
        retained(R, Q, R, R)
