"""Kinds of text: each is judged on its own, one that the reference cannot read is not, and the worst is named."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest

from emendo.evaluate import Snapshot
from emendo.gate.canaries import CanarySet
from emendo.gate.checks import judge, measure
from emendo.gate.config import default_config
from emendo.gate.evidence import Evidence
from emendo.gate.sections import CheckConfig, MovedConfig
from emendo.gate.topics import Moved, TokenMove, TopicShift, moved_most
from emendo.models import EditableModel

NOBODY = Snapshot(lambda: pytest.fail("no model was given"))
CHECKS = ("text_perplexity", "text_kl", "text_flips")


def topic(name: str, ratio: float = 1.0, kl: float = 0.001, flipped: int = 0, **more: bool) -> TopicShift:
    worst = Moved(f"{name}-1", f"… in {name}", " was", " is", 10 * kl)
    return TopicShift(name, 200, 2.0, 2.0 + math.log(ratio), kl, 50, flipped, more.get("known", True), worst)


def evidence(*topics: TopicShift) -> Evidence:
    return Evidence(NOBODY, NOBODY, CanarySet((), {}), (), "", cast(EditableModel, None), topics)


SOUND = tuple(topic(f"kind {number}") for number in range(19))


@pytest.mark.parametrize(
    ("name", "damage", "value"),
    [
        ("text_perplexity", topic("Chinese", ratio=1.58), 1.58),
        ("text_kl", topic("Chinese", kl=0.3), 0.3),
        ("text_flips", topic("Chinese", flipped=20), 0.4),
    ],
)
def test_one_damaged_kind_among_many_sound_ones_is_refused_and_named(
    name: str, damage: TopicShift, value: float
) -> None:
    config = default_config().checks.declared()[name]
    found = judge(name, config, measure(name, config, evidence(*SOUND, damage)))
    assert found.measured == pytest.approx(value)
    assert not found.passed
    assert "Chinese" in found.words
    assert found.details[0]["topic"] == "Chinese"
    assert judge(name, config, measure(name, config, evidence(*SOUND))).passed


@pytest.mark.parametrize("name", CHECKS)
def test_a_kind_that_the_reference_cannot_read_neither_trips_nor_hides(name: str) -> None:
    unread = topic("Hindi", ratio=50, kl=9, flipped=50, known=False)
    config = default_config().checks.declared()[name]
    found = judge(name, config, measure(name, config, evidence(*SOUND, unread)))
    assert found.passed
    assert "cannot read it: Hindi" in found.words
    damaged = topic("code", ratio=2, kl=1, flipped=40)
    assert not judge(name, config, measure(name, config, evidence(*SOUND, unread, damaged))).passed


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("topics", [(), (topic("Hindi", known=False),)])
def test_without_a_kind_to_judge_nothing_is_measured(name: str, topics: tuple[TopicShift, ...]) -> None:
    for unmeasured in ("pass", "fail"):
        config = CheckConfig(limit=0, unmeasured=unmeasured)
        assert judge(name, config, measure(name, config, evidence(*topics))).outcome == f"not measured, {unmeasured}"


@pytest.mark.parametrize("name", ["canary_kl_mean", "canary_kl_p99", "canary_moved", "canary_flips"])
def test_canary_files_without_prompts_leave_prompt_checks_unmeasured(name: str) -> None:
    config = MovedConfig(limit=0) if name == "canary_moved" else CheckConfig(limit=0)
    found = judge(name, config, measure(name, config, evidence(*SOUND)))
    assert found.outcome == "not measured, fail"
    assert "no canary file has a prompt" in found.words


def test_no_confident_token_is_no_flip() -> None:
    config = CheckConfig(limit=0)
    none_sure = TopicShift("x", 9, 2.0, 2.0, 0.0, 0, 0, known=True, worst=Moved("x", "x", "a", "a", 0.0))
    assert measure("text_flips", config, evidence(none_sure)).value == 0


def test_harm_after_one_token_is_refused_though_no_kind_shows_it() -> None:
    moves = (TokenMove("?", 19, 0.51, "chat"), TokenMove(" of", 23, 0.01, "English"))
    config = default_config().checks.text_token
    assert config is not None
    found = judge("text_token", config, measure("text_token", config, replace(evidence(*SOUND), tokens=moves)), 50)
    assert (found.passed, found.measured, found.n) == (False, 0.51, 19)
    assert "right after '?', which moved most (19 places, most in chat)" in found.words
    assert moved_most(SOUND, moves).endswith("After one token: '?', KL 0.51, most of it in chat")
    assert judge("text_token", config, measure("text_token", config, evidence())).outcome == "not measured, pass"


def test_one_line_says_which_kind_moved_most_by_how_much_and_where() -> None:
    line = moved_most((*SOUND, topic("Chinese", ratio=1.58, kl=0.3, flipped=20)))
    assert line.startswith("Chinese: perplexity × 1.580, KL 0.3 nats a token, 20 of 50 sure tokens changed")
    assert "most after '… in Chinese' (' was' became ' is')" in line
    assert "Next: kind 0, × 1.000" in line
    assert "\n" not in line
    assert "Hindi" not in moved_most((*SOUND, topic("Hindi", kl=9, known=False)))
    assert "no kind of text" in moved_most((topic("Hindi", known=False),))
