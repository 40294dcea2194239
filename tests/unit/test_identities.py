"""What the published methods are of each other, as equations between updates in float64.

A row of the table is a name and two ways to one update ΔW [d_out, d_in]. Ways that go through the engine only are
equations of its settings; where a side is an oracle of tests/reference.py, the engine is held to the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from emendo.solve import Preservation, extend_history, prepare, solve
from tests import reference
from tests.every import every

D_IN, D_OUT, N = 24, 7, 9
TOLERANCE = 1e-12

PLAIN = Preservation()
MEMIT = Preservation(weight=20.0)
ENCORE = Preservation(weight=20.0, ridge=3.0)
ALPHAEDIT = Preservation(weight=0.0, ridge=10.0, null_space="absolute", threshold=1.0)
ENERGY = Preservation(weight=2.0, ridge=0.1, null_space="energy", threshold=0.3)


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Case:
    """A second moment (condition 1e3, half of its eigenvalues below 1), keys [n, d_in] and residuals [n, d_out]."""

    C: Tensor
    K: Tensor
    R: Tensor

    @classmethod
    def make(cls, n: int = N) -> Case:
        return cls(reference.moment_with_condition(D_IN, 1e3, seed=5), randn(n, D_IN, seed=1), randn(n, D_OUT, seed=2))


def relative(actual: Tensor, expected: Tensor) -> float:
    return (torch.linalg.matrix_norm(actual - expected) / torch.linalg.matrix_norm(expected)).item()


# --- ways to an update ----------------------------------------------------------------------------

Way = Callable[[Case], Tensor]


def engine(preservation: Preservation = PLAIN, *, s: float) -> Way:
    """All requests at once."""
    return lambda case: case.R.T @ solve(prepare(case.C, preservation), case.K, s=s).dual_keys


def sequential(
    preservation: Preservation,
    *,
    s: float,
    sizes: Sequence[int] = (4, 5),
    history_weight: float | None = None,
    remeasured: bool = True,
    later_s: float | None = None,
) -> Way:
    """Batch after batch, as a session does it, in a layer that starts at W with wanted outputs V = W K + R.

    Args:
        history_weight: Weight of earlier keys; None: 1/s, the one that makes later batches count them as their own.
        remeasured: Residuals are V − (W + what was written so far) K; if not, V − W K.
        later_s: Strength of all batches but the first, if another.
    """

    def way(case: Case) -> Tensor:
        W = randn(D_OUT, D_IN, seed=9)
        V = case.K @ W.T + case.R
        written, history = torch.zeros_like(W), None
        layer = prepare(case.C, preservation)
        ends = list(itertools.accumulate(sizes))
        for start, end in zip([0, *ends], ends, strict=False):
            K = case.K[start:end]
            R = V[start:end] - K @ (W + written * remeasured).T
            strength = later_s if later_s is not None and start else s
            written = written + R.T @ solve(layer, K, s=strength).dual_keys
            if history_weight != 0.0:
                history = extend_history(history, K, weight=history_weight or 1 / s)
                layer = layer.with_history(history)
        assert ends[-1] == len(case.K)
        return written

    return way


def emmet(alpha: float, weight: float, ridge: float) -> Way:
    return lambda case: reference.emmet_delta(case.K.T, case.R.T, case.C, alpha=alpha, weight=weight, ridge=ridge)


def memit(lam: float, ridge: float = 0.0) -> Way:
    return lambda case: reference.memit_delta(case.K.T, case.R.T, case.C, lam=lam, ridge=ridge)


def rome(case: Case) -> Tensor:
    return reference.rome_delta(case.R[0], case.K[0], case.K[0], case.C)


def alphaedit(case: Case) -> Tensor:
    return reference.alphaedit_delta(case.K.T, case.R.T, case.C, threshold=1.0, l2=10.0)


def null_ridge(kept: int, *, s: float, weight: float, ridge: float) -> Way:
    return lambda case: reference.null_ridge_delta(
        case.K.T, case.R.T, case.C, kept=kept, s=s, weight=weight, ridge=ridge
    )


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    name: str
    left: Way
    right: Way
    n: int = N


ONE_BY_ONE = [1] * N
IDENTITIES = [
    Identity("ROME is EMMET of one request", rome, engine(s=0.0), n=1),
    Identity("ROME is EMMET of one request, by its own formula", rome, emmet(0.0, 1.0, 0.0), n=1),
    Identity("equality ignores the weight of C", engine(s=0.0), engine(Preservation(1e3), s=0.0)),
    *(
        identity
        for alpha, weight, ridge in ((0.1, 1e3, 0.0), (0.3, 2.0, 0.7), (1.0, 5.0, 2.0))
        for identity in (
            Identity(
                f"EMMET(α={alpha}, w={weight}, g={ridge}) is MEMIT(λ=αw, ridge αg)",
                engine(Preservation(weight, ridge), s=alpha),
                engine(Preservation(alpha * weight, alpha * ridge), s=1.0),
            ),
            Identity(
                f"EMMET(α={alpha}, w={weight}, g={ridge}) as published is MEMIT as published",
                emmet(alpha, weight, ridge),
                memit(alpha * weight, alpha * ridge),
            ),
            Identity(
                f"the engine's EMMET(α={alpha}, w={weight}, g={ridge}) is MEMIT as published",
                engine(Preservation(weight, ridge), s=alpha),
                memit(alpha * weight, alpha * ridge),
            ),
        )
    ),
    Identity("AlphaEdit is its published solve", engine(ALPHAEDIT, s=1.0), alphaedit),
    Identity(
        "AlphaEdit is ridge regression in the null basis",
        engine(ALPHAEDIT, s=1.0),
        null_ridge(12, s=1.0, weight=0.0, ridge=10.0),
    ),
    Identity(
        "MEMIT with a null space is MEMIT in the null basis",
        engine(Preservation(2.0, 0.1, "absolute", 1.0), s=0.5),
        null_ridge(12, s=0.5, weight=2.0, ridge=0.1),
    ),
    Identity(
        "AlphaEdit with everything kept is ridge regression",
        engine(Preservation(0.0, 10.0, "absolute", 1e9), s=1.0),
        memit(0.0, 10.0),
    ),
    *(
        Identity(
            f"{name} with history, batches of {sizes}, s={s}, is one shot",
            sequential(f, s=s, sizes=sizes),
            engine(f, s=s),
        )
        for name, f in (("MEMIT", MEMIT), ("ENCORE", ENCORE), ("AlphaEdit", ALPHAEDIT), ("energy null space", ENERGY))
        for s in (1.0, 0.25)
        for sizes in ((4, 5), (2, 3, 4), (8, 1), ONE_BY_ONE)
    ),
    Identity("AlphaEdit with its cache is its one-shot solve", sequential(ALPHAEDIT, s=1.0), alphaedit),
    Identity("one batch needs no history", sequential(MEMIT, s=1.0, sizes=[N], history_weight=0.0), engine(MEMIT, s=1)),
]


@every("identity", IDENTITIES, ids=lambda identity: identity.name)
def test_identity(identity: Identity) -> None:
    case = Case.make(identity.n)
    assert relative(identity.left(case), identity.right(case)) <= TOLERANCE


def test_alphaedit_adds_the_cache_of_earlier_keys() -> None:
    case, previous = Case.make(), randn(6, D_IN, seed=8)
    layer = prepare(case.C, ALPHAEDIT, history=extend_history(None, previous))
    expected = reference.alphaedit_delta(
        case.K.T, case.R.T, case.C, threshold=1.0, l2=10.0, cache=previous.T @ previous
    )
    assert relative(case.R.T @ solve(layer, case.K, s=1.0).dual_keys, expected) <= TOLERANCE


def test_the_reported_lambda_is_that_of_the_equal_memit() -> None:
    case = Case.make()
    stats = solve(prepare(case.C, Preservation(2.0, 0.7)), case.K, s=0.3).stats
    right = memit(stats.effective_lambda, stats.effective_ridge)(case)
    assert relative(engine(Preservation(2.0, 0.7), s=0.3)(case), right) <= TOLERANCE
    assert (stats.effective_lambda, stats.effective_ridge) == (pytest.approx(0.6), pytest.approx(0.21))


# --- what sequential = one-shot rests on ----------------------------------------------------------
#
# With M₁ = sA + K₁ᵀK₁ and M₂ = M₁ + K₂ᵀK₂: Δ₁M₁ = R₁ᵀK₁. A second batch with history K₁ᵀK₁/s and the residuals that
# the first one left, R₂' = R₂ − K₂Δ₁ᵀ, has Δ₂M₂ = R₂'ᵀK₂. Then (Δ₁ + Δ₂)M₂ = R₁ᵀK₁ + Δ₁K₂ᵀK₂ + R₂'ᵀK₂ =
# R₁ᵀK₁ + R₂ᵀK₂, which is the one-shot solution. Each row takes one of these conditions away.

BROKEN = {
    "residuals of the untouched model": (sequential(MEMIT, s=1.0, remeasured=False), engine(MEMIT, s=1.0)),
    "no history": (sequential(MEMIT, s=1.0, history_weight=0.0), engine(MEMIT, s=1.0)),
    "history counted twice": (sequential(MEMIT, s=1.0, history_weight=2.0), engine(MEMIT, s=1.0)),
    "weight 1 where s is not 1": (sequential(MEMIT, s=0.25, history_weight=1.0), engine(MEMIT, s=0.25)),
    "another s for the second batch": (sequential(MEMIT, s=1.0, later_s=0.5), engine(MEMIT, s=1.0)),
    "AlphaEdit without its cache": (sequential(ALPHAEDIT, s=1.0, history_weight=0.0), engine(ALPHAEDIT, s=1.0)),
    "equality, where 1/s is no number": (sequential(PLAIN, s=0.0, history_weight=1.0), engine(s=0.0)),
}


@pytest.mark.parametrize("condition", BROKEN)
def test_sequential_is_not_one_shot_where_a_condition_fails(condition: str) -> None:
    in_batches, one_shot = BROKEN[condition]
    case = Case.make()
    assert relative(in_batches(case), one_shot(case)) > 1e-2


def test_keys_that_moved_break_it_too() -> None:
    """The history holds the keys that were edited, not those that the edited model has: hence *fixed* keys."""
    case = Case.make()
    moved = Case(case.C, torch.cat([case.K[:4] + 0.1 * randn(4, D_IN, seed=7), case.K[4:]]), case.R)
    assert relative(sequential(MEMIT, s=1.0)(case), engine(MEMIT, s=1.0)(moved)) > 1e-2


def test_keys_that_the_metric_keeps_apart_need_no_history() -> None:
    """K₁A⁻¹K₂ᵀ = 0: the batches do not see each other."""
    case = Case.make()
    L = torch.linalg.cholesky(case.C)
    apart = Case(case.C, torch.linalg.qr(randn(D_IN, N))[0].T @ L.T, case.R)
    way = sequential(MEMIT, s=1.0, history_weight=0.0, remeasured=False)
    assert relative(way(apart), engine(MEMIT, s=1.0)(apart)) <= TOLERANCE


def test_equality_with_history_tends_to_one_shot_as_its_weight_grows() -> None:
    case = Case.make()
    expected = engine(s=0.0)(case)
    weights = (1.0, 1e3, 1e6)
    distances = [relative(sequential(PLAIN, s=0.0, history_weight=w)(case), expected) for w in weights]
    assert distances[0] > 1e-2
    assert distances[1] < 1e-2 * distances[0]
    assert distances[2] < 1e-5 * distances[0]


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("null_space", [{}, {"null_space": "absolute", "threshold": 1.0}])
def test_memit_tends_to_emmet_as_lambda_goes_to_zero(null_space: dict[str, str | float]) -> None:
    case = Case.make()
    equality = engine(Preservation(1.0, **null_space), s=0.0)(case)
    distances = [relative(engine(Preservation(w, **null_space), s=1.0)(case), equality) for w in (1.0, 1e-3, 1e-6)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] <= 1e-6
    assert solve(prepare(case.C, PLAIN), case.K, s=0.0).stats.effective_lambda == 0.0


def test_memit_tends_to_nothing_as_lambda_goes_to_infinity() -> None:
    case = Case.make()
    update = engine(Preservation(1e12), s=1.0)(case)
    first_order = case.R.T @ torch.linalg.solve(case.C, case.K.T).T * 1e-12
    assert relative(update, first_order) <= 1e-6
    assert solve(prepare(case.C, Preservation(1e12)), case.K, s=1.0).stats.memorized <= 1e-8


def test_alphaedit_tends_to_nothing_at_keys_outside_the_null_space() -> None:
    case = Case.make()
    U = torch.linalg.svd(case.C).U[:, :12]  # eigenvalues above the threshold
    update = engine(ALPHAEDIT, s=1.0)(case)
    assert (update @ U).abs().max() <= 1e-13 * update.abs().max()
