"""Shares with bounds, retention of edits, and means over records, by hand."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emendo.errors import InputError
from emendo.evaluate import (
    TokenScores,
    mean_over_records,
    prediction_agreement,
    retention,
    token_accuracy,
    wilson_interval,
)


def test_wilson_interval_of_known_cases() -> None:
    # Brown, Cai and DasGupta 2001 give these for 95 %.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    z = 1.959964
    assert wilson_interval(0, 10) == pytest.approx((0.0, z * z / (10 + z * z)), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z * z), 1.0), abs=1e-6)
    assert wilson_interval(0, 0) is None


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n) or (1.0, 0.0)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 1.0)])
def test_wilson_interval_refuses(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(InputError):
        wilson_interval(successes, n, confidence=confidence)


def test_retention_by_hand() -> None:
    immediate = [True, True, True, False, True, False]
    final = [True, False, False, True, True, False]
    found = retention(immediate, final, first=(1, 3))
    assert (found.immediate.successes, found.immediate.n) == (4, 6)
    assert found.final.value == 0.5
    assert (found.forgetting.successes, found.forgetting.n, found.forgetting.value) == (2, 4, 0.5)
    assert (found.late.successes, found.late.n) == (1, 2)
    assert {k: share.value for k, share in found.first.items()} == {1: 1.0, 3: pytest.approx(1 / 3)}
    assert found.forgetting.interval == wilson_interval(2, 4)
    assert json.loads(json.dumps(found.to_dict()))["first"]["3"]["n"] == 3


def test_retention_without_anything_to_forget() -> None:
    found = retention([False, False], [False, True])
    assert (found.forgetting.value, found.forgetting.n, found.forgetting.interval) == (None, 0, None)


def test_retention_refuses() -> None:
    with pytest.raises(InputError, match="1 immediate and 2 final"):
        retention([True], [True, False])
    with pytest.raises(InputError, match=r"between 1 and 2, found \[3\]"):
        retention([True, True], [True, True], first=(1, 3))


def test_means_leave_out_what_is_not_defined() -> None:
    rows = [{"a": 0.5, "b": 1.0}, {"a": 1.0, "b": None}, {"a": 0.0}]
    found = mean_over_records(rows, ("a", "b", "c"), harmonic={"s": ("a", "b"), "t": ("a", "c")}, scale=100)
    assert found.values == {"a": 50.0, "b": 100.0, "c": None, "s": pytest.approx(200 / 3), "t": None}
    assert found.counts == {"a": 3, "b": 1, "c": 0, "s": 1, "t": 0}
    assert found.intervals["b"] is None
    low, high = found.intervals["a"] or (math.nan, math.nan)
    assert 0 <= low <= 50 <= high <= 100
    assert found == mean_over_records(rows, ("a", "b", "c"), harmonic={"s": ("a", "b"), "t": ("a", "c")}, scale=100)
    assert json.loads(json.dumps(found.to_dict()))["n"] == 3


def test_means_refuse() -> None:
    with pytest.raises(InputError, match="list of records is empty"):
        mean_over_records([], ("a",))
    with pytest.raises(InputError, match="finite"):
        mean_over_records([{"a": math.inf}], ("a",))


def test_token_accuracy_by_hand() -> None:
    score = TokenScores(targets=(5, 6, 7, 8), log_probs=(-1.0, -2.0, -3.0, -4.0), predicted=(5, 0, 7, 0))
    assert score.hits == (True, False, True, False)
    assert (score.nll, token_accuracy(score)) == (2.5, 0.5)


def test_prediction_agreement_is_with_the_base_model_not_with_the_answer() -> None:
    def scores(*predicted: tuple[int, ...]) -> list[TokenScores]:
        return [TokenScores((1,) * len(ids), (-1.0,) * len(ids), ids) for ids in predicted]

    before = scores((4, 5), (6,), (7, 8))
    after = scores((4, 5), (1,), (1, 8))  # both right and wrong changes count
    assert prediction_agreement(before, after) == pytest.approx((1 + 0 + 0.5) / 3)
    with pytest.raises(InputError, match="same answers"):
        prediction_agreement(before, after[:2])
