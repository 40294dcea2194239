"""Statistics of a sweep beside a trace against plain float64 versions: least squares, loops over resamples, ranks."""

from __future__ import annotations

import numpy as np
import pytest

from emendo.errors import InputError
from emendo.evaluate import harmonic_score
from emendo.evaluate.bootstrap import quantile_interval
from emendo.evaluate.layer_statistics import (
    draws,
    explained,
    rank_correlation,
    ranks,
    regret,
    score,
    spearman,
    standing,
)

FACTS, LAYERS, RESAMPLES = 12, 5, 40


@pytest.fixture
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects, an outcome that depends on layer and effect, and shares."""
    random = np.random.default_rng(7)
    effects = random.normal(size=(FACTS, LAYERS)) + np.arange(LAYERS)
    outcomes = 0.3 * effects + np.array([0.0, 2.0, 1.0, -1.0, 0.5]) + random.normal(size=(FACTS, LAYERS))
    shares = random.uniform(0.2, 1.0, size=(FACTS, LAYERS, 3)) - 0.1 * np.arange(LAYERS)[None, :, None]
    shares = shares.clip(0.01, 1.0)
    shares[3, :, 2] = np.nan  # a fact without neighbours
    return effects, outcomes, shares


def r_squared(design: np.ndarray, outcome: np.ndarray) -> float:
    found, *_ = np.linalg.lstsq(design, outcome, rcond=None)
    residual = outcome - design @ found
    return float(1 - residual @ residual / ((outcome - outcome.mean()) ** 2).sum())


def fits(effects: np.ndarray, outcomes: np.ndarray) -> list[float]:
    dummies = np.tile(np.eye(effects.shape[1]), (len(effects), 1))
    x, y = effects.ravel(), outcomes.ravel()
    layer = r_squared(dummies, y)
    both = np.column_stack([dummies, x])
    slope = np.linalg.lstsq(both, y, rcond=None)[0][-1]
    tracing = r_squared(np.column_stack([np.ones_like(x), x]), y)
    return [layer, tracing, r_squared(both, y), r_squared(both, y) - layer, float(slope)]


def resamples(seed: int) -> list[np.ndarray]:
    """Indices of each resample, as `draws` draws them."""
    return [np.repeat(np.arange(FACTS), row.astype(int)) for row in draws(FACTS, RESAMPLES, seed)]


def test_explained_is_least_squares(tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    effects, outcomes, _ = tables
    found = explained(effects, outcomes, n_resamples=RESAMPLES, seed=3)
    expected = fits(effects, outcomes)
    drawn = np.array([fits(effects[rows], outcomes[rows]) for rows in resamples(3)])
    for place, estimate in enumerate((found.layer, found.tracing, found.both, found.gain, found.slope)):
        assert estimate.value == pytest.approx(expected[place], abs=1e-12)
        assert estimate.interval == pytest.approx(quantile_interval(drawn[:, place], 0.95), abs=1e-12)


def test_large_offsets_do_not_cancel(tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    effects, outcomes, _ = tables
    there, far = explained(effects, outcomes), explained(effects + 1e6, outcomes - 1e6)
    assert far.both.value == pytest.approx(there.both.value, abs=1e-8)
    assert far.gain.value == pytest.approx(there.gain.value, abs=1e-8)


def test_an_effect_that_is_the_layer_adds_nothing() -> None:
    effects = np.tile(np.arange(4.0), (6, 1))
    outcomes = np.random.default_rng(0).normal(size=(6, 4))
    found = explained(effects, outcomes, n_resamples=20)
    assert found.gain.value == 0
    assert np.isnan(found.slope.value)
    still = explained(effects, np.ones((6, 4)), n_resamples=20)
    assert np.isnan(still.layer.value)
    assert still.layer.interval is None
    assert still.layer.to_dict() == {"value": None, "interval": None}


def test_score_is_that_of_reports(tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _, _, shares = tables
    for rows, found in zip(resamples(5), score(shares, draws(FACTS, RESAMPLES, 5)), strict=True):
        for layer in range(LAYERS):
            means = np.nanmean(shares[rows, layer], axis=0)
            assert found[layer] == pytest.approx(100 * harmonic_score(*means), abs=1e-10)
    shares[:, 0, 0] = 0.0
    assert score(shares)[0, 0] == 0, "S is 0 as soon as one part is"


def test_rank_correlation_resamples_facts(tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    effects, _, shares = tables
    found = rank_correlation(effects, shares, n_resamples=RESAMPLES, seed=2)
    drawn = [spearman(effects[rows].mean(axis=0), score(shares[rows])[0]) for rows in resamples(2)]
    assert found.value == pytest.approx(spearman(effects.mean(axis=0), score(shares)[0]))
    assert found.interval == pytest.approx(quantile_interval(np.array(drawn), 0.95))


def test_ranks_and_spearman() -> None:
    np.testing.assert_array_equal(ranks(np.array([3.0, 1.0, 3.0, 0.0])), [2.5, 1.0, 2.5, 0.0])
    assert spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8)  # 1 − 6 · 2 / (4 · 15)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman([1, 2, np.nan], [1, 2, 3]))


def test_layers_that_cannot_be_told_apart(tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    effects, _, shares = tables
    shares[:, 1] = shares[:, 0]  # the same in every fact
    shares[:, 4] = 0.3 * shares[:, 0]  # worse in every fact
    found = standing(shares, n_resamples=200)
    here = score(shares)[0]
    assert found.best == int(here.argmax())
    drawn = np.array([score(shares[rows])[0] for rows in resamples(0)])
    paired = standing(shares, n_resamples=RESAMPLES)
    for layer in range(LAYERS):
        assert paired.behind[layer].value == pytest.approx(here[found.best] - here[layer])
        expected = quantile_interval(drawn[:, found.best] - drawn[:, layer], 0.95)
        assert paired.behind[layer].interval == pytest.approx(expected)
    assert found.alike[found.best]
    assert not found.alike[4]
    if found.best in (0, 1):
        assert found.alike[1]
        assert found.behind[1].interval == (0.0, 0.0)
    chosen, behind = regret(effects, shares, found)
    assert chosen == int(effects.mean(axis=0).argmax())
    assert behind.value == pytest.approx(here[found.best] - here[chosen])


def test_tables_must_fit(tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    effects, outcomes, shares = tables
    with pytest.raises(InputError, match=r"same facts and layers|of floats \[facts, layers"):
        explained(effects, outcomes[:, :2])
    with pytest.raises(InputError, match=r"same facts and layers|of floats \[facts, layers"):
        rank_correlation(effects[:3], shares)
    with pytest.raises(InputError, match="n_resamples"):
        standing(shares, n_resamples=0)
    assert explained(effects[:1], outcomes[:1]).both.interval is None, "one fact has no spread"
