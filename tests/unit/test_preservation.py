"""The preservation metric: f(C) + H, its factor, its condition, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from emendo.errors import InfeasibleError, InputError, MomentsError
from emendo.solve import Preservation, extend_history, prepare, solve
from emendo.solve.conditioning import inverse_norm, one_norm
from emendo.solve.preservation import preservation_metric
from tests.reference import moment_with_condition


def random_keys(n: int, d_in: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d_in, dtype=torch.float64, generator=generator)


class TestPreservation:
    def test_metric_is_weight_times_moment_plus_ridge(self):
        C = moment_with_condition(5, 10.0, seed=0)
        metric = preservation_metric(Preservation(weight=3.0, ridge=0.5), C)
        torch.testing.assert_close(metric, 3.0 * C + 0.5 * torch.eye(5, dtype=torch.float64))

    def test_weight_zero_with_a_ridge_ignores_the_moment(self):
        C = moment_with_condition(5, 10.0, seed=0)
        metric = preservation_metric(Preservation(weight=0.0, ridge=1.0), C)
        assert torch.equal(metric, torch.eye(5, dtype=torch.float64))

    @pytest.mark.parametrize("moment", [torch.zeros(5, 5), torch.full((5, 5), float("nan")), torch.ones(5, 5).triu()])
    def test_the_identity_needs_no_second_moment(self, moment: torch.Tensor):
        """Only its size counts: no tokens need be collected for it."""
        layer, K = prepare(moment, Preservation(weight=0.0, ridge=1.0)), random_keys(3, 5)
        assert torch.equal(layer.metric(), torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(solve(layer, K, s=0.0).dual_keys, torch.linalg.pinv(K).T)

    def test_the_identity_still_needs_a_size(self):
        with pytest.raises(MomentsError, match=r"3x4; expected a square"):
            prepare(torch.ones(3, 4), Preservation(weight=0.0, ridge=1.0))

    def test_a_float32_moment_gives_a_float64_metric_and_stays_as_it_was(self):
        C = moment_with_condition(5, 10.0, seed=0).float()
        before = C.clone()
        metric = preservation_metric(Preservation(weight=2.0, ridge=1.0), C)
        assert metric.dtype == torch.float64
        assert torch.equal(C, before)

    def test_a_float64_moment_is_copied(self):
        C = moment_with_condition(5, 10.0, seed=0)
        before = C.clone()
        preservation_metric(Preservation(weight=2.0, ridge=1.0), C, history=C)
        assert torch.equal(C, before)

    @pytest.mark.parametrize("name", ["weight", "ridge"])
    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_refuses_values_outside_the_range(self, name: str, value: float):
        with pytest.raises(InputError, match=rf"preservation\.{name}.*at least 0.*--set"):
            Preservation(**{name: value})

    def test_refuses_to_preserve_nothing(self):
        with pytest.raises(InputError, match="nothing would be preserved"):
            Preservation(weight=0.0, ridge=0.0)


class TestMomentChecks:
    @pytest.mark.parametrize(
        ("moment", "message"),
        [
            (torch.ones(3, 4), r"3x4; expected a square"),
            (torch.ones(3), r"is 3; expected a square"),
            (torch.eye(3).long(), "floating dtype"),
            (torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), "not finite"),
            (torch.tensor([[1.0, float("inf")], [float("inf"), 1.0]]), "not finite"),
            (torch.tensor([[1.0, 0.5], [0.4, 1.0]]), "not symmetric.*moments collect"),
        ],
    )
    def test_refuses_what_is_not_a_second_moment(self, moment: torch.Tensor, message: str):
        with pytest.raises(MomentsError, match=message):
            prepare(moment, Preservation())

    def test_finds_an_asymmetry_beyond_the_first_block_of_rows(self):
        C = torch.eye(1500)
        C[1400, 20] = 0.1
        with pytest.raises(MomentsError, match="not symmetric"):
            preservation_metric(Preservation(), C)

    def test_accepts_the_asymmetry_of_float32_sums(self):
        C = moment_with_condition(8, 10.0, seed=0).float()
        C[0, 1] *= 1 + 1e-6
        prepare(C, Preservation())

    def test_refuses_a_history_of_another_layer(self):
        with pytest.raises(InputError, match="history is 4x4 but the second moment is 3x3"):
            prepare(torch.eye(3), Preservation(), history=torch.eye(4))

    def test_refuses_a_history_that_is_not_symmetric(self):
        history = torch.tensor([[1.0, 0.5], [0.4, 1.0]])
        with pytest.raises(InputError, match=r"history is not symmetric.*extend_history"):
            prepare(torch.eye(2), Preservation(), history=history)


class TestPrepare:
    @pytest.mark.parametrize("condition", [1e1, 1e6, 1e10])
    def test_the_factor_reproduces_the_metric(self, condition: float):
        C = moment_with_condition(20, condition, seed=1)
        history = extend_history(None, random_keys(3, 20))
        layer = prepare(C, Preservation(2.0, 0.1), history=history)
        L = layer.cholesky
        expected = 2.0 * C + 0.1 * torch.eye(20, dtype=torch.float64) + history
        torch.testing.assert_close(L @ L.T, expected, rtol=1e-13, atol=1e-13 * expected.max())
        torch.testing.assert_close(layer.metric(), expected)
        assert layer.d_in == 20

    @pytest.mark.parametrize("condition", [1.0, 1e1, 1e6, 1e10])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_condition_estimate_is_a_lower_bound_within_a_factor_of_three(self, condition, seed):
        C = moment_with_condition(30, condition, seed=seed)
        true = (one_norm(C) * one_norm(torch.linalg.inv(C))) if condition > 1.0 else 1.0
        assert true / 3 <= prepare(C, Preservation()).condition <= true * (1 + 1e-5)

    def test_whitening_halves_the_inverse(self):
        C, K = moment_with_condition(12, 1e3, seed=2), random_keys(5, 12)
        layer = prepare(C, Preservation())
        inverse = torch.linalg.inv(C)
        Z = layer.whiten(K)
        torch.testing.assert_close(Z @ Z.T, K @ inverse @ K.T, rtol=1e-10, atol=0)
        torch.testing.assert_close(layer.unwhiten(Z), K @ inverse, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.leverage(K), (K @ inverse @ K.T).diagonal())

    @pytest.mark.parametrize("tokens", [1, 10, 31])
    def test_too_few_tokens_are_an_error_that_says_what_to_do(self, tokens: int):
        X = random_keys(tokens, 32)
        with pytest.raises(InfeasibleError) as caught:
            prepare(X.T @ X / tokens, Preservation())
        message = str(caught.value)
        assert "not positive definite" in message
        assert "fewer than d_in = 32" in message
        assert "moments collect --tokens 320" in message
        assert "--set preservation.ridge=" in message

    @pytest.mark.parametrize("seed", range(20))
    def test_one_missing_dimension_is_never_mistaken_for_a_small_one(self, seed: int):
        """Where one direction is missing, rounding may well leave a small positive last pivot."""
        X = random_keys(200, 40, seed) @ moment_with_condition(40, 1e4, seed)
        X[:, 7] = X[:, 3] - 2 * X[:, 30]
        with pytest.raises(InfeasibleError, match="not positive definite"):
            prepare(X.T @ X / len(X), Preservation())

    def test_a_coordinate_that_never_fires_is_named_as_such(self):
        X = random_keys(50, 6)
        X[:, 2] = 0.0
        with pytest.raises(InfeasibleError, match="1 of its 6 coordinates have no positive"):
            prepare(X.T @ X / 50, Preservation())

    def test_a_float32_moment_of_a_wide_spectrum_is_told_what_it_lost(self):
        """Each direction is there, but float32 rounds the small ones away."""
        C = moment_with_condition(40, 1e10, seed=1)
        prepare(C, Preservation())
        with pytest.raises(InfeasibleError, match=r"torch\.float32 whose eigenvalues.*8e\+06.*float64"):
            prepare(C.float(), Preservation())

    def test_the_suggested_ridge_helps(self):
        X = random_keys(10, 32)
        C = X.T @ X / 10
        with pytest.raises(InfeasibleError) as caught:
            prepare(C, Preservation())
        ridge = float(str(caught.value).rsplit("ridge=", 1)[1].strip("`."))
        prepare(C, Preservation(ridge=ridge))

    def test_no_gradient_is_recorded(self):
        C = moment_with_condition(4, 10.0, seed=0).requires_grad_()
        layer = prepare(C, Preservation())
        assert not layer.cholesky.requires_grad


class TestHistory:
    def test_sums_the_outer_products_of_all_batches(self):
        first, second = random_keys(3, 6, seed=1), random_keys(2, 6, seed=2)
        history = extend_history(extend_history(None, first, weight=2.0), second, weight=0.5)
        torch.testing.assert_close(history, 2.0 * first.T @ first + 0.5 * second.T @ second)

    def test_does_not_touch_the_history_passed_in(self):
        history = torch.eye(4, dtype=torch.float64)
        extend_history(history, random_keys(2, 4))
        assert torch.equal(history, torch.eye(4, dtype=torch.float64))

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
    def test_refuses_a_weight_that_is_no_weight(self, weight: float):
        with pytest.raises(InputError, match="above 0"):
            extend_history(None, random_keys(2, 4), weight=weight)

    def test_refuses_keys_of_another_width(self):
        with pytest.raises(InputError, match="history is 4x4 but the keys are 2x5"):
            extend_history(torch.eye(4), torch.ones(2, 5))

    @pytest.mark.parametrize("history", [None, torch.eye(4)])
    def test_refuses_a_single_key_without_its_row_dimension(self, history: torch.Tensor | None):
        with pytest.raises(InputError, match=r"keys are 4; expected \[n, d_in\]"):
            extend_history(history, torch.ones(4))


class TestInverseNorm:
    @pytest.mark.parametrize("size", [1, 2, 7, 40])
    def test_bounds_the_norm_of_an_unsymmetric_inverse(self, size: int):
        matrix = random_keys(size, size, seed=size)
        true = one_norm(torch.linalg.inv(matrix))
        estimate = inverse_norm(
            lambda x: torch.linalg.solve(matrix, x),
            size,
            like=matrix,
            apply_transpose=lambda x: torch.linalg.solve(matrix.T, x),
        )
        assert true / 3 <= estimate <= true * (1 + 1e-10)
