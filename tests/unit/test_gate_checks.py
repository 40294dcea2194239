"""Checks of a gate on hand-made evidence: what each measures, and that each passes and fails exactly at its limit."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from emendo.editing.weight_change import LayerChange
from emendo.evaluate import Snapshot, begins_with, wilson_interval
from emendo.gate.canaries import CanarySet
from emendo.gate.checks import AT_LEAST, broken, judge, measure
from emendo.gate.config import default_config
from emendo.gate.evidence import Evidence, Measurement, share_of
from emendo.gate.report import Check, GateReport
from emendo.gate.sections import CheckConfig, Checks, GrowingConfig, ShareConfig, SuccessConfig
from emendo.models import EditableModel
from emendo.report import verdict_of
from tests.every import every

ABOVE, BELOW = math.inf, -math.inf
NOBODY = Snapshot(lambda: pytest.fail("no model was given"))


def config_of(name: str, limit: float, **more: Any) -> CheckConfig:
    kind = type(default_config().checks.declared()[name])
    return kind(limit=limit, **more)


def measured(value: float | None, interval: tuple[float, float] | None = None) -> Measurement:
    return Measurement(value, 10, "of 10 things", interval)


# ---- limits --------------------------------------------------------------------------------------------------


@every("name", list(Checks.model_fields))
@every("limit", [0.0, 0.1, 0.3, 1.0])
def test_the_limit_itself_passes_and_the_next_number_beyond_fails(name: str, limit: float) -> None:
    config = config_of(name, limit)
    outside, inside = (BELOW, ABOVE) if name in AT_LEAST else (ABOVE, BELOW)
    at = judge(name, config, measured(limit))
    beyond = judge(name, config, measured(math.nextafter(limit, outside)))
    within = judge(name, config, measured(math.nextafter(limit, inside)))
    assert (at.passed, at.margin, at.outcome) == (True, 0.0, "pass")
    assert within.passed
    assert not beyond.passed
    assert beyond.margin is not None
    assert beyond.margin < 0


@every("name", list(Checks.model_fields))
def test_a_failure_says_by_how_much(name: str) -> None:
    value, limit = (0.25, 0.75) if name in AT_LEAST else (0.75, 0.25)
    check = judge(name, config_of(name, limit), measured(value))
    assert check.margin == -0.5
    assert "off by 0.5" in check.words
    assert f"expected at {'least' if name in AT_LEAST else 'most'} {limit}" in check.words
    assert "off by" not in judge(name, config_of(name, value), measured(value)).words


def test_a_limit_grows_with_the_facts_up_to_an_end() -> None:
    config = GrowingConfig(limit=0.02, each=0.01, most=0.1)
    assert [round(config.limit_for(facts), 9) for facts in (0, 1, 2, 5, 9, 10, 1000)] == [
        *(0.02, 0.02, 0.03, 0.06),
        *(0.1, 0.1, 0.1),
    ]
    assert GrowingConfig(limit=0.02).limit_for(50) == 0.02
    five, fifty = (judge("text_kl", config, measured(0.07), facts) for facts in (5, 50))
    assert (five.passed, round(five.limit, 9)) == (False, 0.06)
    assert five.words == "0.07 of 10 things; expected at most 0.06 for 5 facts, off by 0.01"
    assert fifty.passed
    assert fifty.margin == pytest.approx(0.03)
    assert broken("text_kl", config, "overflow", 50).limit == 0.1


@every("name", list(Checks.model_fields))
@every("unmeasured", ["pass", "fail"])
def test_what_cannot_be_measured_is_said_and_never_silently_passed(name: str, unmeasured: str) -> None:
    check = judge(name, config_of(name, 0.5, unmeasured=unmeasured), Measurement(None, 0, "there is nothing"))
    assert check.outcome == f"not measured, {unmeasured}"
    assert check.passed == (unmeasured == "pass")
    assert check.words == "not measured: there is nothing"
    assert check.margin is None


@every("name", list(Checks.model_fields))
def test_what_is_not_a_number_fails(name: str) -> None:
    assert not judge(name, config_of(name, 0.0 if name in AT_LEAST else 1.0), measured(math.nan)).passed
    assert not broken(name, config_of(name, 0.5, unmeasured="pass"), "overflow").passed


SHARES = ("efficacy", "paraphrase", "neighborhood_flips", "neighborhood_lost", "canary_moved", "canary_flips")


@pytest.mark.parametrize("name", SHARES)
def test_an_end_of_the_interval_is_judged_where_it_is_asked_for(name: str) -> None:
    interval = wilson_interval(5, 10)
    assert interval is not None
    low, high = interval
    worst, best = (low, high) if name in AT_LEAST else (high, low)
    found = measured(0.5, interval)
    for end, value in (("worst_end", worst), ("best_end", best), ("estimate", 0.5)):
        check = judge(name, config_of(name, value, judge=end), found)
        assert (check.judged, check.passed, check.measured, check.interval) == (value, True, 0.5, interval)
        strict = value + 1e-9 if name in AT_LEAST else value - 1e-9
        assert not judge(name, config_of(name, strict, judge=end), found).passed
    words = judge(name, config_of(name, 0.5, judge="worst_end"), found).words
    assert words.startswith(f"0.5, of its interval the worst end {worst:.4g},")


# ---- what is generated ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (" Rome.", "Rome", True),
        ("Rome, Italy", " Rome", True),
        ("rome is", "Rome", True),
        ("Romeo and", "Rome", False),
        ("the city of Rome", "Rome", False),
        ("New York City", "New York", True),
        ("New Jersey", "New York", False),
        ("", "Rome", False),
        ("罗马的", "罗马", True),
    ],
)
def test_generated_text_begins_with_the_words_of_the_target(text: str, target: str, expected: bool) -> None:
    assert begins_with(text, target) is expected


# ---- the report ----------------------------------------------------------------------------------------------


def report(*checks: Check, success: str = "argmax") -> GateReport:
    config = {"checks": {"efficacy": {"success": success}}}
    return GateReport(checks, (), ("id",), "base", (), {}, "", (), {}, config, forced=False, seconds=1.0)


GOOD = judge("efficacy", SuccessConfig(limit=0.5), measured(1.0))
BAD = judge("canary_flips", ShareConfig(limit=0.1), measured(0.35))


def test_one_failing_check_keeps_an_edit_out_and_is_named() -> None:
    found = report(GOOD, BAD)
    assert not found.passed
    assert not found.admitted
    assert found.summary().splitlines()[0] == "1 of 2 checks of the gate fail:"
    assert (
        found.summary()
        .splitlines()[1]
        .startswith("  canary_flips: 0.35 of 10 things; expected at most 0.1, off by 0.25")
    )
    assert report(GOOD).passed
    assert report(GOOD).summary() == "all 1 checks of the gate pass"


def test_only_a_failing_edit_can_be_forced() -> None:
    assert report(GOOD).override() == report(GOOD)
    forced = report(GOOD, BAD).override()
    assert (forced.passed, forced.forced, forced.admitted) == (False, True, True)
    assert forced.to_dict()["forced"] is True
    forced.require()


def test_a_passing_report_names_what_was_not_measured() -> None:
    left_out = judge("paraphrase", SuccessConfig(limit=0.5, unmeasured="pass"), Measurement(None, 0, "nothing"))
    assert report(GOOD, left_out).summary() == "all 1 measured checks of the gate pass; not measured: paraphrase"
    assert str(verdict_of(1, None, report(GOOD, left_out))) == (
        "1 fact planned, nothing judged; gate passed, 1 of 2 checks measured; NOT MEASURED: paraphrase."
    )


@pytest.mark.parametrize(
    ("said", "facts", "passed"), [(11, 12, False), (12, 12, True), (18, 19, False), (19, 20, True)]
)
def test_by_default_all_but_a_twentieth_are_said(said: int, facts: int, passed: bool) -> None:
    """So of fewer than twenty facts all are."""
    config = default_config().checks.efficacy
    assert config is not None
    assert config.success == "generated"
    assert judge("efficacy", config, share_of(said, facts, "")).passed is passed


def test_a_passing_report_names_what_is_not_said() -> None:
    missed = {"prompt": "The capital of Morocco is", "says": " Rabatit", "target": " Rabat"}
    config = SuccessConfig(limit=0.5, success="generated")
    check = judge("efficacy", config, share_of(11, 12, "of 12", [missed]))
    found = report(check, success="generated")
    assert found.said == (11, 12)
    assert found.summary() == "all 1 checks of the gate pass; not said: 'The capital of Morocco is'"
    verdict = verdict_of(12, None, found)
    assert str(verdict) == "11 of 12 facts said (not 'The capital of Morocco is'); gate passed, 1 checks."
    assert verdict.missed() == "Not said: 'The capital of Morocco is' → 'Rabatit', not 'Rabat'."
    assert verdict.outcome == "doubtful"
    assert report(GOOD).said is None
    assert str(verdict_of(12, None, report(GOOD))) == "12 facts planned, nothing judged; gate passed, 1 checks."


def test_a_report_names_the_neighbors_that_are_lost_though_the_check_passes() -> None:
    france = {"prompt": "What is the capital of France?", "says": "Lyon.", "target": "Paris", "chat": True}
    check = judge("neighborhood_lost", ShareConfig(limit=0.5), share_of(2, 5, "of 5", [france, {"prompt": "scored"}]))
    found = report(check)
    assert found.passed
    assert (found.neighbors, found.lost) == ((3, 5), (france,))
    verdict = verdict_of(1, None, found)
    assert "neighbors 3 of 5 kept" in str(verdict)
    assert verdict.missed() == "Neighbors lost: 'What is the capital of France?' in chat → 'Lyon.', not 'Paris'."
    assert verdict.outcome == "doubtful"
    assert (report(GOOD).neighbors, report(GOOD).lost) == (None, ())


@pytest.mark.parametrize("name", ["norm_growth", "relative_cost"])
def test_a_layer_without_a_number_is_not_hidden_by_a_sound_one(name: str) -> None:
    layers = (LayerChange(0, 0.1, 0.1), LayerChange(1, math.nan, math.nan), LayerChange(2, 0.2, 0.2))
    evidence = Evidence(NOBODY, NOBODY, CanarySet((), {}), layers, "", cast(EditableModel, None))
    config = config_of(name, 9.0)
    check = judge(name, config, measure(name, config, evidence))
    assert not check.passed
    assert "(layer 1)" in check.words
