"""What the solver refuses, and that it says which requests and what to do."""

from __future__ import annotations

import re

import pytest
import torch

from emendo.errors import InfeasibleError, InputError, NumericalError
from emendo.solve import KEY_TOLERANCE, PreparedLayer, Preservation, key_tolerance, prepare, solve
from tests.reference import moment_with_condition

D_IN = 32
NAMES = ["anna", "ben", "carl", "dora", "emil", "fay", "gus", "hal"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture(params=[1e1, 1e10], ids=["well-conditioned", "ill-conditioned"])
def layer(request: pytest.FixtureRequest) -> PreparedLayer:
    return prepare(moment_with_condition(D_IN, request.param, seed=3), Preservation())


@pytest.fixture(name="K")
def fixture_k() -> torch.Tensor:
    return randn(len(NAMES), D_IN, seed=1)


def noisy(key: torch.Tensor, size: float, seed: int = 7) -> torch.Tensor:
    """The key with noise of a given relative length, as another batch shape gives it."""
    noise = randn(len(key), seed=seed)
    return key + size * key.norm() * noise / noise.norm()


def refusal(layer: PreparedLayer, keys: torch.Tensor, **options) -> str:
    with pytest.raises(InfeasibleError) as caught:
        solve(layer, keys, s=0.0, **{"labels": NAMES, **options})
    message = str(caught.value)
    assert "--method memit" in message
    assert "--method emmet-published" in message
    assert caught.value.exit_code == 2
    return message


class TestSharedKeys:
    @pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-6, 5e-6])
    def test_requests_with_one_key_up_to_float32_noise_are_named(self, layer, K, noise):
        K[3] = noisy(K[1], noise)
        message = refusal(layer, K)
        assert "these requests share a key: ben, dora\n" in message
        assert "anna" not in message

    def test_noise_of_a_real_float32_round_trip(self, layer, K):
        K[3] = (K[1].float() * 3.3 / 3.3).double()
        assert "share a key: ben, dora\n" in refusal(layer, K.float())

    def test_several_groups_are_told_apart(self, layer, K):
        K[4] = K[6] = noisy(K[0], 1e-6)
        K[5] = noisy(K[2], 1e-6)
        message = refusal(layer, K)
        assert "share a key: anna, emil, gus\n" in message
        assert "share a key: carl, fay\n" in message

    def test_the_direction_is_what_counts(self, layer, K):
        K[3], K[5] = -2.0 * K[1], 0.01 * K[1]
        assert "share a key: ben, dora, fay\n" in refusal(layer, K)

    def test_bfloat16_noise_needs_its_own_tolerance(self, layer, K):
        K[3] = noisy(K[1], 2e-2)
        message = refusal(layer, K, tolerance=key_tolerance(torch.bfloat16))
        assert "share a key: ben, dora\n" in message

    def test_near_but_different_keys_are_solved(self, K):
        K[3] = noisy(K[1], 1e-3)
        layer = prepare(moment_with_condition(D_IN, 1e3, seed=3), Preservation())
        solution = solve(layer, K, s=0.0)
        assert solution.stats.constraint_error <= 1e-12
        assert solution.stats.system_condition > 1e4

    def test_least_squares_takes_shared_keys(self, K):
        K[3] = K[1]
        layer = prepare(moment_with_condition(D_IN, 1e3, seed=3), Preservation())
        Q = solve(layer, K, s=1.0).dual_keys
        torch.testing.assert_close(Q[3], Q[1])

    def test_long_lists_are_cut(self, layer):
        K = randn(30, D_IN)
        K[10:] = K[0]
        message = refusal(layer, K, labels=None)
        first = ", ".join(f"row {i}" for i in (0, *range(10, 17)))
        assert f"share a key: {first} and 13 more\n" in message

    def test_many_groups_are_cut(self, layer):
        message = refusal(layer, randn(16, D_IN).repeat_interleave(2, dim=0), labels=None)
        assert message.count("these requests share a key") == 5
        assert "and 11 more groups that share a key" in message


class TestCombinations:
    def test_a_combination_is_named_with_its_parts(self, layer, K):
        K[6] = noisy(0.5 * K[1] - 2.0 * K[4], 1e-6)
        message = refusal(layer, K)
        assert "the key of gus is a combination of those of emil, ben\n" in message

    def test_shared_keys_and_combinations_come_together(self, layer, K):
        K[7] = K[0]
        K[6] = K[1] + K[2] + K[3]
        message = refusal(layer, K)
        assert "share a key: anna, hal\n" in message
        parts = message.split("the key of gus is a combination of those of ")[1].split("\n")[0]
        assert sorted(parts.split(", ")) == ["ben", "carl", "dora"]

    def test_many_combinations_are_cut(self, layer):
        K = randn(20, D_IN)
        K[10:] = randn(10, 10, seed=2) @ K[:10]
        message = refusal(layer, K, labels=None)
        assert message.count("is a combination of") == 5
        assert "and more such combinations" in message

    def test_more_requests_than_dimensions(self, layer):
        message = refusal(layer, randn(D_IN + 1, D_IN), labels=None)
        assert "33 requests" in message
        assert "d_in = 32" in message

    def test_as_many_requests_as_dimensions_are_solved(self):
        layer = prepare(moment_with_condition(D_IN, 1e3, seed=3), Preservation())
        K = randn(D_IN, D_IN)
        torch.testing.assert_close(solve(layer, K, s=0.0).dual_keys, torch.linalg.inv(K).T, rtol=1e-9, atol=1e-9)

    def test_keys_that_the_metric_cannot_tell_apart(self, K):
        """They differ by 1e-3, but only where the preserved keys vary 1e10 times as much."""
        C = torch.ones(D_IN, dtype=torch.float64)
        C[0] = 1e10
        K[3] = K[1]
        K[3, 0] += 1e-3 * K[1].norm()
        message = refusal(prepare(C.diag(), Preservation()), K)
        assert "singular in float64" in message
        assert "share a key: ben, dora\n" in message
        assert "--set preservation.ridge" in message


class TestBadKeys:
    def test_zero_keys_are_named(self, layer, K):
        K[2] = K[5] = 0.0
        assert "The key of carl, fay is zero" in refusal(layer, K)

    def test_zero_keys_are_fine_for_least_squares_and_get_nothing(self, layer, K):
        K[2] = 0.0
        assert torch.equal(solve(layer, K, s=1.0).dual_keys[2], torch.zeros(D_IN).double())

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("s", [0.0, 1.0])
    def test_keys_that_are_not_finite_are_named(self, layer, K, value, s):
        K[4, 3] = value
        with pytest.raises(NumericalError, match=r"keys of emil are not finite.*--dtype float32"):
            solve(layer, K, s=s, labels=NAMES)

    def test_rows_are_numbered_where_there_are_no_labels(self, layer, K):
        K[4] = K[2]
        assert "share a key: row 2, row 4\n" in refusal(layer, K, labels=None)

    @pytest.mark.parametrize("keys", [torch.ones(3, D_IN + 1), torch.ones(D_IN), torch.ones(())])
    def test_keys_of_another_width(self, layer, keys):
        with pytest.raises(InputError, match=r"expected \[n, 32\].*same layer"):
            solve(layer, keys, s=0.0)

    def test_labels_of_another_batch(self, layer, K):
        with pytest.raises(InputError, match="Got 3 labels for 8 keys"):
            solve(layer, K, s=0.0, labels=NAMES[:3])


class TestArguments:
    @pytest.mark.parametrize("s", [-1.0, float("nan"), float("inf")])
    def test_strength_out_of_range(self, layer, K, s):
        with pytest.raises(InputError, match=r"s is .*at least 0 \(0 is equality\)"):
            solve(layer, K, s=s)

    def test_unknown_form(self, layer, K):
        with pytest.raises(InputError, match=r"form is 'qr'.* expected 'auto' or 'dual' or 'primal'"):
            solve(layer, K, s=1.0, form="qr")

    def test_equality_has_no_primal_form(self, layer, K):
        with pytest.raises(InputError, match=r"needs s > 0.*form='dual'"):
            solve(layer, K, s=0.0, form="primal")

    @pytest.mark.parametrize(("s", "form"), [(1.0, "auto"), (1.0, "dual"), (1.0, "primal")])
    def test_constraint_keys_need_equality(self, layer, K, s, form):
        with pytest.raises(InputError, match=r"constraint_keys hold with equality.*s=0"):
            solve(layer, K, s=s, form=form, constraint_keys=K)

    def test_constraint_keys_of_another_batch(self, layer, K):
        with pytest.raises(InputError, match=r"Constraint keys \[7, 32\] do not fit keys \[8, 32\]"):
            solve(layer, K, s=0.0, constraint_keys=K[:7])


class TestConstraintKeys:
    def test_shared_constraint_keys_are_named_too(self, layer, K):
        constraint_keys = K.clone()
        constraint_keys[3] = constraint_keys[1]
        assert "share a key: ben, dora\n" in refusal(layer, K, constraint_keys=constraint_keys)

    def test_a_disabling_edit_is_refused_and_named(self):
        """The averaged key of original ROME does not reach the clean one: its denominator is 0."""
        layer = prepare(torch.eye(D_IN), Preservation())
        K = torch.eye(D_IN).double()[:3]
        clean = K.clone()
        clean[1] = torch.eye(D_IN)[9]
        with pytest.raises(InfeasibleError, match=r"worst at ben with a cosine of 0.*r-rome"):
            solve(layer, K, s=0.0, constraint_keys=clean, labels=NAMES[:3])

    def test_a_small_denominator_shows_in_the_condition(self):
        layer = prepare(torch.eye(D_IN), Preservation())
        key, clean = torch.zeros(1, D_IN), torch.zeros(1, D_IN)
        key[0, 0], clean[0, 0], clean[0, 1] = 1.0, 1e-3, 1.0
        stats = solve(layer, key, s=0.0, constraint_keys=clean).stats
        assert stats.system_condition == pytest.approx(1e3, rel=1e-3)


@pytest.mark.parametrize("form", ["dual", "primal"])
def test_a_strength_lost_in_rounding_is_an_error_and_not_a_wrong_answer(K, form):
    layer = prepare(moment_with_condition(D_IN, 1e10, seed=3), Preservation(weight=1e-9))
    K[1] = K[0]
    with pytest.raises(NumericalError, match=r"lost in rounding.*preservation\.weight"):
        solve(layer, K, s=1.0, form=form)


@pytest.mark.parametrize(("s", "weight"), [(1.0, 1e-9), (1e-12, 1e4)])
def test_the_strength_that_the_error_proposes_is_enough(K, s, weight):
    layer = prepare(moment_with_condition(D_IN, 1e10, seed=3), Preservation(weight=weight))
    K[1] = K[0]
    with pytest.raises(NumericalError) as caught:
        solve(layer, K, s=s * 1e-6)
    proposed = float(re.search(r"memorization\.s=(\S+)`", str(caught.value))[1])
    assert proposed > s * 1e-6
    solve(layer, K, s=proposed)
    weight = float(re.search(r"preservation\.weight=(\S+)`", str(caught.value))[1])
    solve(prepare(moment_with_condition(D_IN, 1e10, seed=3), Preservation(weight=weight)), K, s=s * 1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_keys_that_the_metric_hardly_tells_apart_are_named_and_the_ridge_it_proposes_is_enough(K, scale):
    moment = scale * moment_with_condition(D_IN, 1e12, seed=3)
    stiff = torch.linalg.eigh(moment).eigenvectors[:, -1]
    K[3] = K[1] + 1e-3 * K[1].norm() * stiff
    with pytest.raises(InfeasibleError, match=r"differ only in directions") as caught:
        solve(prepare(moment, Preservation()), K, s=0.0, labels=NAMES)
    assert re.search(r"ben.*dora|dora.*ben", str(caught.value))
    ridge = float(re.search(r"preservation\.ridge=(\S+)`", str(caught.value))[1])
    assert solve(prepare(moment, Preservation(ridge=ridge)), K, s=0.0).stats.constraint_error < 1e-9


def test_a_key_of_nothing_overlaps_no_other(K, layer):
    K[2] = 0.0
    stats = solve(layer, K, s=1.0).stats
    rest = solve(layer, K[[0, 1, 3, 4, 5, 6, 7]], s=1.0).stats
    assert stats.key_overlap_max == pytest.approx(rest.key_overlap_max)
    assert 0.0 < stats.key_overlap_mean < rest.key_overlap_mean


def test_equality_that_rounding_spoils_is_an_error(layer, K):
    """Keys of very unequal lengths: what the solve claims is measured, and not believed."""
    K[0] *= 1e13
    with pytest.raises(NumericalError, match=r"constraint error of .*expected at most 1e-06"):
        solve(layer, K, s=0.0)


def test_the_tolerance_follows_the_precision_of_the_model():
    assert key_tolerance(torch.float32) == KEY_TOLERANCE
    # What was measured on a real model: noise below, the nearest different prompt above.
    assert 4.9e-6 < KEY_TOLERANCE < 2.1e-1
    assert 1.7e-2 < key_tolerance(torch.bfloat16) < 2.1e-1
