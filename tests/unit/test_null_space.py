"""Null-space preservation: which directions are kept, the same answer in every form, and what is refused."""

from __future__ import annotations

import pytest
import torch

from emendo.errors import InfeasibleError, InputError, MomentsError
from emendo.solve import PreparedLayer, Preservation, extend_history, key_tolerance, prepare, solve
from tests.every import every
from tests.reference import moment_with_condition, null_ridge_delta

D_IN, D_OUT = 20, 5
NAMES = ["anna", "ben", "carl", "dora", "emil", "fay", "gus", "hal"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def spectrum(*values: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A second moment with the given eigenvalues, ascending, and its eigenvectors as columns."""
    basis, _ = torch.linalg.qr(randn(len(values), len(values), seed=seed))
    moment = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T
    return (moment + moment.T) / 2, basis


@pytest.fixture(name="C")
def fixture_c() -> torch.Tensor:
    """Eigenvalues from 1e-2 to 1e2: ten below 1."""
    return moment_with_condition(D_IN, 1e4, seed=5)


def alphaedit(threshold: float = 1.0, **more: float | str) -> Preservation:
    return Preservation(**{"weight": 0.0, "ridge": 10.0, "null_space": "absolute", "threshold": threshold, **more})


# --- which directions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "kept"), [(0.012, 1), (0.02, 2), (1.0, 10), (99.0, 19)])
def test_absolute_keeps_the_eigenvalues_below_the_threshold(C, threshold, kept):
    layer = prepare(C, alphaedit(threshold))
    assert layer.dimensions == kept == int((torch.linalg.svdvals(C) < threshold).sum())
    assert layer.d_in == D_IN
    assert solve(layer, randn(3, D_IN), s=1.0).stats.dimensions == kept


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.05, 1), (0.1, 1), (0.3001, 2), (0.2999, 1), (0.6, 2), (0.6001, 3), (1.0, 4)]
)
def test_energy_keeps_the_most_directions_that_hold_at_most_that_share(threshold, kept):
    C, _ = spectrum(5.0, 25.0 + 1e-9, 30.0, 40.0)  # shares .05 .25 .3 .4
    layer = prepare(C, Preservation(1.0, 0.0, "energy", threshold))
    assert layer.dimensions == kept


def test_energy_means_the_same_on_every_scale(C):
    for scale in (1e-6, 1.0, 1e6):
        assert prepare(scale * C, Preservation(null_space="energy", threshold=0.1)).dimensions == 15
    assert prepare(1e-6 * C, alphaedit(1.0)).dimensions == D_IN
    with pytest.raises(InfeasibleError):
        prepare(1e6 * C, alphaedit(1.0))


def test_off_is_every_direction(C):
    layer = prepare(C, Preservation())
    assert layer.dimensions == D_IN
    assert solve(layer, randn(3, D_IN), s=1.0).stats.dimensions == D_IN


@pytest.mark.parametrize(("rule", "threshold"), [("absolute", 1e3), ("energy", 1.0)])
@pytest.mark.parametrize("s", [0.0, 1.0])
def test_everything_kept_is_the_plain_metric_bit_for_bit(C, rule, threshold, s):
    K = randn(4, D_IN)
    kept, plain = prepare(C, Preservation(2.0, 0.3, rule, threshold)), prepare(C, Preservation(2.0, 0.3))
    assert kept.null_space is None
    assert torch.equal(solve(kept, K, s=s).dual_keys, solve(plain, K, s=s).dual_keys)


def test_the_second_moment_of_nothing_leaves_everything_open():
    layer = prepare(torch.zeros(4, 4), Preservation(0.0, 1.0, "energy", 0.1))
    assert layer.dimensions == 4


# --- the algebra ----------------------------------------------------------------------------------


@every(("weight", "ridge"), [(0.0, 10.0), (1.0, 0.0), (3.0, 0.2)])
@every("form", ["auto", "dual", "primal"])
@every(("s", "n"), [(1.0, 3), (0.1, 10), (1.0, 15), (5.0, 40)])
def test_every_form_is_least_squares_in_the_kept_coordinates(C, form, s, n, weight, ridge):
    K, R = randn(n, D_IN, seed=1), randn(n, D_OUT, seed=2)
    solution = solve(prepare(C, Preservation(weight, ridge, "absolute", 1.0)), K, s=s, form=form)
    expected = null_ridge_delta(K.T, R.T, C, kept=10, s=s, weight=weight, ridge=ridge)
    torch.testing.assert_close(R.T @ solution.dual_keys, expected, rtol=1e-9, atol=1e-11)
    assert solution.stats.form == (form if form != "auto" else "primal" if n > 10 else "dual")
    fit = solution.dual_keys @ K.T
    assert solution.stats.memorized == pytest.approx(fit.trace().item() / n)
    gap = torch.linalg.matrix_norm(fit - torch.eye(n).double()).item() / n**0.5
    assert solution.stats.constraint_error == pytest.approx(gap)


@pytest.mark.parametrize("s", [0.0, 1.0])
def test_the_update_stays_in_the_null_space(s):
    C, basis = spectrum(*[0.01] * 8, *[1.0] * 12)
    Q = solve(prepare(C, alphaedit(0.02)), randn(6, D_IN), s=s).dual_keys
    outside = basis[:, 8:]
    assert (Q @ outside).abs().max() <= 1e-14 * Q.abs().max()


def test_equality_holds_and_is_cheapest_in_the_null_space(C):
    K, R = randn(4, D_IN, seed=1), randn(4, D_OUT, seed=2)
    layer = prepare(C, Preservation(1.0, 0.0, "absolute", 1.0))
    solution = solve(layer, K, s=0.0)
    assert solution.stats.constraint_error <= 1e-13
    delta = R.T @ solution.dual_keys
    torch.testing.assert_close(delta @ K.T, R.T, rtol=1e-12, atol=1e-12)
    U = torch.linalg.svd(C).U[:, -10:]
    free = U @ (torch.eye(10).double() - (U.T @ K.T) @ torch.linalg.pinv(U.T @ K.T)) @ U.T
    cost = torch.trace(delta @ C @ delta.T)
    for seed in range(10):
        other = delta + 1e-2 * randn(D_OUT, D_IN, seed=seed) @ free
        torch.testing.assert_close(other @ K.T, R.T, rtol=1e-9, atol=1e-9)
        assert torch.trace(other @ C @ other.T) > cost


def test_two_kinds_of_keys_hold_at_the_constraint_keys(C):
    K = randn(4, D_IN, seed=1)
    clean = K + 0.1 * randn(4, D_IN, seed=2)
    Q = solve(prepare(C, alphaedit()), K, s=0.0, constraint_keys=clean).dual_keys
    torch.testing.assert_close(Q @ clean.T, torch.eye(4).double(), rtol=1e-11, atol=1e-11)


def test_whitening_halves_the_inverse_of_the_kept_part(C):
    K, history = randn(5, D_IN), extend_history(None, randn(3, D_IN, seed=8))
    layer = prepare(C, Preservation(2.0, 0.3, "absolute", 1.0), history=history)
    U = torch.linalg.svd(C).U[:, -10:]
    A_U = U.T @ (2.0 * C + 0.3 * torch.eye(D_IN).double() + history) @ U
    inverse = U @ torch.linalg.inv(A_U) @ U.T
    Z = layer.whiten(K)
    assert Z.shape == (5, 10)
    torch.testing.assert_close(Z @ Z.T, K @ inverse @ K.T)
    torch.testing.assert_close(layer.unwhiten(Z), K @ inverse)
    torch.testing.assert_close(layer.leverage(K), (K @ inverse @ K.T).diagonal())
    torch.testing.assert_close(torch.linalg.eigvalsh(layer.metric()), torch.linalg.eigvalsh(A_U))
    true = torch.linalg.cond(A_U).item()
    assert true / 3 <= layer.condition <= 10 * true


def test_long_keys_with_a_short_kept_part_lose_no_accuracy():
    """Massive activations lie outside the null space: a key's kept part may be a millionth of it."""
    C, basis = spectrum(*[0.01] * 8, *[1e8] * 12)
    K = randn(3, D_IN) @ basis.T
    K = K @ basis @ torch.diag(torch.tensor([1.0] * 8 + [1e4] * 12).double()) @ basis.T
    solution = solve(prepare(C, alphaedit(0.02)), K, s=0.0, tolerance=1e-9)
    torch.testing.assert_close(solution.dual_keys @ K.T, torch.eye(3).double(), rtol=0, atol=1e-10)


def test_inputs_stay_as_they_were_and_runs_repeat_bit_for_bit(C):
    K, history = randn(4, D_IN), extend_history(None, randn(3, D_IN, seed=8))
    before = [tensor.clone() for tensor in (C, K, history)]
    first, second = (solve(prepare(C, alphaedit(), history=history), K, s=1.0).dual_keys for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip((C, K, history), before, strict=True))
    assert prepare(C.requires_grad_(), alphaedit()).cholesky.requires_grad is False


# --- history --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preservation", [Preservation(2.0, 0.1), alphaedit(), Preservation(2.0, 0.1, "energy", 0.1)])
def test_with_history_is_prepare_with_history(C, preservation):
    history = extend_history(None, randn(3, D_IN, seed=8))
    K = randn(4, D_IN)
    fresh = prepare(C, preservation, history=history)
    layer = prepare(C, preservation)
    derived = layer.with_history(history)
    for s in (0.0, 1.0):
        assert torch.equal(solve(derived, K, s=s).dual_keys, solve(fresh, K, s=s).dual_keys)
    assert derived.condition == fresh.condition
    assert derived.history is history
    assert layer.history is None, "the layer it came from is unchanged"
    back = derived.with_history(None)
    assert torch.equal(back.cholesky, layer.cholesky)


@pytest.mark.parametrize("preservation", [alphaedit(), Preservation()])
def test_a_growing_history_takes_no_further_eigendecomposition(C, preservation, monkeypatch):
    calls: list[int] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(len(matrix)) or eigh(matrix))
    layer, history = prepare(C, preservation), None
    once = [D_IN] * (preservation.null_space != "off")
    assert calls == once
    for seed in range(3):
        history = extend_history(history, randn(2, D_IN, seed=seed))
        layer = layer.with_history(history)
    solve(layer, randn(30, D_IN), s=1.0)
    assert calls == once
    torch.testing.assert_close(layer.metric(), prepare(C, preservation, history=history).metric())


@pytest.mark.parametrize("preservation", [alphaedit(), Preservation()])
def test_a_history_of_another_layer_is_refused(C, preservation):
    layer = prepare(C, preservation)
    with pytest.raises(InputError, match="history is 4x4 but the second moment is 20x20"):
        layer.with_history(torch.eye(4))
    with pytest.raises(InputError, match=r"history is not symmetric.*extend_history"):
        layer.with_history(torch.ones(D_IN, D_IN).triu())


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"null_space": "svd"}, r"null_space is 'svd'; expected 'off', 'absolute' or 'energy'"),
        ({"null_space": "absolute", "threshold": 0.0}, r"threshold is 0\.0; expected a finite number above 0.*--set"),
        ({"null_space": "absolute", "threshold": float("nan")}, "expected a finite number above 0"),
        ({"null_space": "energy", "threshold": 1.5}, "expected a share above 0 and at most 1"),
        ({"threshold": -1.0}, "expected a finite number above 0"),
        ({"null_space": "absolute", "weight": 0.0}, "nothing would be preserved inside the null space.*ridge=10"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(InputError, match=message):
        Preservation(**values)


@pytest.mark.parametrize(
    ("rule", "threshold", "found"), [("absolute", 1e-3, "smallest eigenvalue"), ("energy", 1e-6, "holds a share of")]
)
def test_an_empty_null_space_is_an_error_whose_suggestion_keeps_half(C, rule, threshold, found):
    with pytest.raises(InfeasibleError, match=found) as caught:
        prepare(C, Preservation(1.0, 0.0, rule, threshold))
    suggested = float(str(caught.value).split("threshold=", 1)[1].split("`")[0])
    assert prepare(C, Preservation(1.0, 0.0, rule, suggested)).dimensions in (10, 11)
    assert ("null_space=energy --set" in str(caught.value)) == (rule == "absolute")


def test_a_null_space_without_a_price_is_an_error_whose_ridge_helps():
    """Fewer tokens than dimensions: the true null space, where C says nothing."""
    X = 100 * randn(12, D_IN)
    C = X.T @ X / 12
    with pytest.raises(InfeasibleError, match=r"8 of 20 dimensions.*in 8 of them.*rounding") as caught:
        prepare(C, Preservation(1.0, 0.0, "absolute", 0.02))
    ridge = float(str(caught.value).rsplit("ridge=", 1)[1].split("`")[0])
    assert prepare(C, Preservation(1.0, ridge, "absolute", 0.02)).dimensions == 8


def test_eigenvalues_that_are_positive_by_rounding_only_are_no_price():
    """They factorise well, and their inverse would be noise."""
    C, _ = spectrum(*[1e-11] * 8, *[1e4] * 12)
    assert torch.linalg.eigvalsh(C)[0] > 0
    with pytest.raises(InfeasibleError, match=r"in 8 of them.*rounding"):
        prepare(C, Preservation(1.0, 0.0, "absolute", 0.02))
    assert prepare(C, Preservation(1.0, 1e-9, "absolute", 0.02)).condition < 10


def test_a_history_that_takes_away_is_refused(C):
    with pytest.raises(InfeasibleError, match="history is not positive semidefinite"):
        prepare(C, alphaedit(), history=-20 * torch.eye(D_IN))


def test_a_moment_that_is_none_is_refused():
    with pytest.raises(MomentsError, match="not finite"):
        prepare(torch.full((3, 3), float("nan")), alphaedit())


class TestEquality:
    @pytest.fixture
    def basis(self) -> torch.Tensor:
        return spectrum(*[0.01] * 8, *[1.0] * 12)[1]

    @pytest.fixture
    def layer(self) -> PreparedLayer:
        return prepare(spectrum(*[0.01] * 8, *[1.0] * 12)[0], alphaedit(0.02))

    def refusal(self, layer, keys, **options) -> str:
        with pytest.raises(InfeasibleError) as caught:
            solve(layer, keys, s=0.0, **{"labels": NAMES, **options})
        message = str(caught.value)
        assert "--method memit" in message
        assert "preservation.threshold" in message
        return message

    def test_more_requests_than_kept_dimensions(self, layer):
        message = self.refusal(layer, randn(9, D_IN), labels=[*NAMES, "ida"])
        assert "9 requests (anna, ben, carl, dora, emil, fay, gus, hal and 1 more) cannot hold" in message
        assert "the null space keeps 8 dimensions" in message

    def test_as_many_as_kept_dimensions_are_solved(self, layer):
        assert solve(layer, randn(8, D_IN), s=0.0).stats.constraint_error <= 1e-12

    @pytest.mark.parametrize("inside", [0.0, 1e-5])
    def test_keys_outside_the_null_space_are_named(self, layer, basis, inside):
        K = randn(8, D_IN)
        for row in (2, 5):
            K[row] = basis[:, 12] + inside * basis[:, 0]
        assert "The key of carl, fay has no part in the null space" in self.refusal(layer, K)
        Q = solve(layer, K, s=1.0).dual_keys
        assert Q[2].norm() <= 1e-5, "least squares gives them nothing"

    def test_keys_that_differ_only_outside_the_null_space_are_named(self, layer, basis):
        K = randn(6, D_IN)
        K[3] = K[1] + 2.0 * basis[:, 15]
        message = self.refusal(layer, K, labels=NAMES[:6])
        assert "not independent inside the null space (8 of 20 dimensions)" in message
        assert "these requests share a key: ben, dora\n" in message

    def test_a_combination_inside_the_null_space_is_named(self, layer, basis):
        K = randn(6, D_IN)
        K[5] = K[0] + K[2] + 3.0 * basis[:, 15]
        message = self.refusal(layer, K, labels=NAMES[:6])
        assert "the key of fay is a combination of those of " in message

    def test_the_noise_is_that_of_the_whole_key(self, layer, basis):
        """Two keys 1e-3 apart of their kept length are different, but not if that is 1e-5 of their whole length."""
        K = randn(4, D_IN) @ basis[:, :8] @ basis[:, :8].T
        K[3] = K[1] + 1e-3 * K[1].norm() * basis[:, 0]
        assert solve(layer, K, s=0.0).stats.constraint_error <= 1e-12
        K += 100 * K.norm(dim=1, keepdim=True) * basis[:, 9]
        message = self.refusal(layer, K, labels=NAMES[:4])
        assert "share a key: ben, dora\n" in message
        assert "anna" not in message
        assert "has no part in the null space" in self.refusal(
            layer, K, labels=NAMES[:4], tolerance=key_tolerance(torch.bfloat16)
        )

    def test_constraint_keys_are_checked_too(self, layer, basis):
        K = randn(4, D_IN)
        clean = K.clone()
        clean[2] = basis[:, 12]
        assert "The key of carl has no part" in self.refusal(layer, K, labels=NAMES[:4], constraint_keys=clean)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("s", "n"), [(0.0, 6), (1.0, 6), (1.0, 60)])
def test_the_gpu_gives_the_same_dual_keys(C, s, n):
    K = randn(n, D_IN, seed=n)
    on_gpu = solve(prepare(C.cuda(), alphaedit()), K, s=s).dual_keys
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), solve(prepare(C, alphaedit()), K, s=s).dual_keys, rtol=1e-9, atol=1e-12)
