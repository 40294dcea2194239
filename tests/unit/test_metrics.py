"""CounterFact metrics on numbers that can be checked by hand."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emendo.errors import InputError, NumericalError
from emendo.evaluate.aggregate import METRICS, EditScores
from emendo.evaluate.bootstrap import bootstrap_interval, resampled_means
from emendo.evaluate.metrics import (
    PromptScore,
    RecordScore,
    TargetScore,
    argmax_accuracy,
    harmonic_score,
    mean_probability,
    neighborhood_magnitude,
    neighborhood_success,
    rewrite_magnitude,
    rewrite_success,
)

NLLS = st.lists(st.tuples(st.floats(0, 50, width=32), st.floats(0, 50, width=32)), min_size=1, max_size=8)


def nll(probability: float) -> float:
    return -math.log(probability)


def prompt(new: float, true: float | None = None, *, argmax: bool = False, argmax_true: bool = False) -> PromptScore:
    """A prompt on which the two targets have these probabilities."""
    return PromptScore(
        prompt="p",
        target=TargetScore(nll(new), argmax, 1),
        target_true=None if true is None else TargetScore(nll(true), argmax_true, 1),
    )


def record(
    efficacy: list[PromptScore],
    paraphrase: list[PromptScore] | None = None,
    neighborhood: list[PromptScore] | None = None,
    *,
    target_true: str | None = "old",
) -> RecordScore:
    return RecordScore(
        id="r",
        target="new",
        target_true=target_true,
        efficacy=tuple(efficacy),
        paraphrase=tuple(paraphrase or ()),
        neighborhood=tuple(neighborhood or ()),
    )


def test_success_counts_prompts_by_hand() -> None:
    new, true = [0.5, 2.0, 1.0, 3.0], [1.0, 1.0, 1.5, 4.0]
    assert rewrite_success(new, true) == 0.75
    assert neighborhood_success(new, true) == 0.25


def test_ties_count_for_neither_side() -> None:
    assert rewrite_success([1.0, 1.0], [1.0, 2.0]) == 0.5
    assert neighborhood_success([1.0, 2.0], [1.0, 1.0]) == 0.5
    assert rewrite_success([3.0], [3.0]) == 0 == neighborhood_success([3.0], [3.0])


def test_magnitudes_are_probability_differences() -> None:
    new, true = [nll(0.6), nll(0.1)], [nll(0.2), nll(0.3)]
    assert rewrite_magnitude(new, true) == pytest.approx((0.4 - 0.2) / 2)
    assert neighborhood_magnitude(new, true) == pytest.approx((-0.4 + 0.2) / 2)


def test_an_infinite_nll_is_a_probability_of_zero() -> None:
    assert rewrite_magnitude([math.inf], [nll(0.25)]) == -0.25
    assert rewrite_success([1.0], [math.inf]) == 1


def test_not_a_number_is_an_error_not_a_failed_edit() -> None:
    with pytest.raises(NumericalError, match="not a number"):
        rewrite_success([math.nan], [1.0])
    with pytest.raises(NumericalError, match="not a number"):
        mean_probability([TargetScore(math.nan, False, 1)])


@pytest.mark.parametrize(("new", "true"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0])])
def test_unpaired_nlls_are_refused(new: list[float], true: list[float]) -> None:
    with pytest.raises(InputError, match="one nll of the new and one of the true"):
        rewrite_success(new, true)


def test_argmax_and_probability_means() -> None:
    scores = [TargetScore(nll(0.5), True, 1), TargetScore(nll(0.1), False, 3)]
    assert argmax_accuracy(scores) == 0.5
    assert mean_probability(scores) == pytest.approx(0.3)
    with pytest.raises(InputError, match="at least one prompt"):
        argmax_accuracy([])


def test_harmonic_score_by_hand() -> None:
    assert harmonic_score(100, 100, 100) == 100
    assert harmonic_score(100, 50, 25) == pytest.approx(3 / (0.01 + 0.02 + 0.04))


@pytest.mark.parametrize("parts", [(0, 90, 80), (90, 0, 80), (90, 80, 0), (0, 0, 0)])
def test_harmonic_score_with_a_zero_is_zero(parts: tuple[float, float, float]) -> None:
    assert harmonic_score(*parts) == 0.0


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_harmonic_score_refuses_what_is_no_share(bad: float) -> None:
    with pytest.raises(InputError, match=r"at least 0|expected a finite number"):
        harmonic_score(50, bad, 50)


@given(NLLS)
def test_success_of_both_sides_and_ties_partition_the_prompts(
    pairs: list[tuple[float, float]],
) -> None:
    new, true = [n for n, _ in pairs], [t for _, t in pairs]
    ties = sum(n == t for n, t in pairs) / len(pairs)
    assert rewrite_success(new, true) + neighborhood_success(new, true) + ties == pytest.approx(1)
    assert rewrite_magnitude(new, true) == -neighborhood_magnitude(new, true)


@given(st.lists(st.floats(1e-3, 100), min_size=3, max_size=3))
def test_harmonic_score_lies_between_its_parts(parts: list[float]) -> None:
    assert min(parts) * (1 - 1e-9) <= harmonic_score(*parts) <= max(parts) * (1 + 1e-9)


def test_aggregate_is_a_mean_over_prompts_then_over_records() -> None:
    # First record: 1 of 1 paraphrases won; second: 1 of 4. Over prompts 2/5, over records 0.625.
    first = record(
        [prompt(0.8, 0.1, argmax=True)],
        [prompt(0.5, 0.2, argmax=True)],
        [prompt(0.1, 0.3, argmax_true=True), prompt(0.4, 0.2)],
    )
    second = record(
        [prompt(0.1, 0.4)],
        [prompt(0.5, 0.25), prompt(0.1, 0.2), prompt(0.1, 0.2), prompt(0.2, 0.2)],
        [prompt(0.1, 0.3, argmax=True)],
    )
    scores = EditScores.from_records([first, second])
    assert scores.ES == 50
    assert pytest.approx(62.5) == scores.PS
    assert pytest.approx(75) == scores.NS
    assert pytest.approx(3 / (1 / 50 + 1 / 62.5 + 1 / 75)) == scores.S
    assert pytest.approx(100 * (0.7 - 0.3) / 2) == scores.EM
    assert pytest.approx(100 * (0.3 + (0.25 - 0.1 - 0.1 + 0) / 4) / 2) == scores.PM
    assert pytest.approx(100 * ((0.2 - 0.2) / 2 + 0.2) / 2) == scores.NM
    assert (scores.EA, scores.PA, scores.NA) == (50, 50, 25)
    assert pytest.approx(45) == scores.EP
    assert pytest.approx(100 * ((0.3 + 0.2) / 2 + 0.3) / 2) == scores.NP
    assert scores.n == 2
    assert set(scores.counts.values()) == {2}
    assert scores.notes == ()


def test_a_zero_component_makes_s_zero_in_the_aggregate() -> None:
    failed = record([prompt(0.1, 0.2)], [prompt(0.3, 0.2)], [prompt(0.1, 0.2)])
    scores = EditScores.from_records([failed, failed])
    assert (scores.ES, scores.PS, scores.NS, scores.S) == (0, 100, 100, 0)
    assert scores.intervals["S"] == (0, 0)


def test_records_without_true_target_are_stated() -> None:
    known = record([prompt(0.8, 0.1)], [prompt(0.5, 0.2)], [prompt(0.1, 0.3)])
    unknown = record(
        [prompt(0.8, argmax=True)],
        [prompt(0.6)],
        [prompt(0.1), prompt(0.1)],
        target_true=None,
    )
    scores = EditScores.from_records([known, unknown])
    assert (scores.ES, scores.PS, scores.NS, scores.S) == (100, 100, 100, 100)
    assert scores.EA == 50
    assert pytest.approx(55) == scores.PP
    assert pytest.approx(30) == scores.NP
    assert scores.counts["ES"] == 1 == scores.counts["NA"] == scores.counts["S"]
    assert scores.counts["EA"] == 2
    assert scores.intervals["ES"] is None
    assert any("1 of 2 records have no target_true" in note for note in scores.notes)
    assert any("2 neighborhood prompts" in note for note in scores.notes)


def test_metrics_that_nothing_defines_are_none_and_stated() -> None:
    scores = EditScores.from_records([record([prompt(0.8)], target_true=None)])
    assert scores.EA == 0
    assert pytest.approx(80) == scores.EP
    undefined = [name for name in METRICS if getattr(scores, name) is None]
    assert undefined == ["ES", "PS", "NS", "S", "EM", "PM", "NM", "PA", "NA", "PP", "NP"]
    assert "No target_true: ES, PS, NS and S were not measured" in scores.notes
    assert any("paraphrase_prompts" in note for note in scores.notes)


def test_equal_targets_are_stated() -> None:
    same = record([prompt(0.5, 0.5)], [prompt(0.5, 0.5)], [prompt(0.5, 0.5)], target_true="new")
    scores = EditScores.from_records([same])
    assert (scores.ES, scores.NS, scores.S) == (0, 0, 0)
    assert any("target equal to target_true" in note for note in scores.notes)


def test_aggregate_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="list of scored records is empty"):
        EditScores.from_records([])


def test_to_dict_is_json_with_nulls_for_what_is_undefined() -> None:
    text = json.dumps(EditScores.from_records([record([prompt(0.8, 0.1)])]).to_dict())
    row = json.loads(text)
    assert row["ES"] == 100
    assert row["PS"] is None
    assert row["counts"]["ES"] == 1
    assert row["bootstrap"] == {
        "confidence": 0.95,
        "n_resamples": 1000,
        "seed": 0,
        "unit": "record",
    }
    assert set(METRICS) <= set(row)
    assert json.loads(json.dumps(record([prompt(0.8, 0.1)]).to_dict()))["target_true"] == "old"


def test_aggregate_interval_is_that_of_the_record_values() -> None:
    wins = [record([prompt(0.8, 0.1)])] * 7 + [record([prompt(0.1, 0.8)])] * 3
    scores = EditScores.from_records(wins, seed=5, n_resamples=400)
    expected = bootstrap_interval([100.0] * 7 + [0.0] * 3, seed=5, n_resamples=400)
    assert scores.intervals["ES"] == pytest.approx(expected)
    assert scores.intervals["PS"] is None


def test_bootstrap_is_seeded_and_close_to_theory() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=400).tolist()
    low, high = bootstrap_interval(values, n_resamples=4000) or (0, 0)
    assert bootstrap_interval(values, n_resamples=4000) == (low, high)
    assert bootstrap_interval(values, n_resamples=4000, seed=1) != (low, high)
    half = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    assert low == pytest.approx(np.mean(values) - half, abs=0.03)
    assert high == pytest.approx(np.mean(values) + half, abs=0.03)


def test_bootstrap_widens_with_confidence() -> None:
    values = list(range(30))
    intervals = [bootstrap_interval(values, confidence=c) or (0, 0) for c in (0.5, 0.9, 0.99)]
    for (low, high), (lower, higher) in pairwise(intervals):
        assert lower < low < high < higher


def test_bootstrap_draws_the_same_records_for_every_metric() -> None:
    values = np.random.default_rng(0).random(20)
    means = resampled_means(np.column_stack([values, 1 - values]), 50, seed=0)
    np.testing.assert_allclose(means.sum(axis=1), 1)


def test_bootstrap_of_one_value_has_no_interval() -> None:
    assert bootstrap_interval([1.0]) is None


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([1.0, 2.0], {"confidence": 1.0}, "confidence"),
        ([1.0, 2.0], {"n_resamples": 0}, "n_resamples"),
        ([1.0, math.nan], {}, "finite"),
    ],
)
def test_bootstrap_refuses(values: list[float], settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_interval(values, **settings)  # type: ignore[arg-type]
