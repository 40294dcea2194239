"""The default limits against the measured runs (benchmarks/results): the monitor warns before a real collapse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emendo.gate import default_config
from emendo.gate.checks import AT_LEAST

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LIMITS = default_config().monitor.limits()


def rows(method: str) -> list[dict[str, Any]]:
    lines = (RESULTS / "collapse.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines[1:]) if row["method"] == method and row["step"] > 0]


def first(run: list[dict[str, Any]], signal: str, limit: float) -> int | None:
    return next((row["step"] for row in run if row[signal] is not None and row[signal] > limit), None)


def test_the_collapse_is_announced_long_before_it_comes() -> None:
    run = rows("rome")
    collapsed = first(run, "perplexity_ratio", 1.5)
    assert collapsed is not None, "the run does collapse"
    warned = {signal: first(run, signal, limit) for signal, limit in LIMITS.items()}
    for signal, ahead in {"norm_growth": 8, "relative_cost": 8, "canary_flips": 6, "canary_kl_mean": 4}.items():
        step = warned[signal]
        assert step is not None
        assert step <= collapsed - ahead, (signal, step, collapsed)
        before = run[step - 1]
        assert before["perplexity_ratio"] < 1.02, "when it warns the model is still sound"
        assert (before["retained_argmax"], before["retained_beats_true"]) == (100, 100)


def test_a_sequence_that_keeps_the_model_is_not_warned_of() -> None:
    run = rows("emendo")
    assert run[-1]["perplexity_ratio"] < 1.01, "the run keeps the model"
    assert {signal: first(run, signal, limit) for signal, limit in LIMITS.items()} == dict.fromkeys(LIMITS)


def gate_runs() -> dict[str, dict[str, Any]]:
    lines = (RESULTS / "gate.jsonl").read_text().splitlines()
    return {row["run"]: row["checks"] for row in map(json.loads, lines[1:])}


def failing(checks: dict[str, Any]) -> set[str]:
    found = set()
    for name, check in default_config().checks.declared().items():
        value = checks.get(name, {}).get("measured")
        if value is not None and (value < check.limit if name in AT_LEAST else value > check.limit):
            found.add(name)
    return found


@pytest.mark.parametrize("run", [run for run in gate_runs() if run.startswith("emendo")])
def test_the_default_gate_lets_a_good_edit_in(run: str) -> None:
    assert failing(gate_runs()[run]) == set()


def test_the_default_gate_keeps_the_collapse_out() -> None:
    runs = gate_runs()
    assert len(failing(runs["rome, 11 edits one by one"])) >= 8
    early = failing(runs["rome, 3 edits one by one"])
    assert {"norm_growth", "relative_cost", "neighborhood_lost"} <= early


# ---- sound and bad edits (benchmarks/gate.py) ------------------------------------------------------------------


def measured_edits(kind: str) -> dict[str, dict[str, Any]]:
    lines = (RESULTS / "gate_edits.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["edit"]: row for row in map(json.loads, lines[1:])}
    found = {name: row["checks"] for name, row in rows.items() if name.startswith(kind)}
    return {name: {check: {"measured": value} for check, value in row.items()} for name, row in found.items()}


@pytest.mark.parametrize("size", ["01", "10"])
def test_sound_edits_of_one_and_of_ten_facts_pass(size: str) -> None:
    edits = measured_edits(f"sound/{size}-")
    assert len(edits) == 10
    assert {name: failing(checks) for name, checks in edits.items()} == {name: set() for name in edits}


def test_fifty_facts_are_refused_for_the_kinds_of_text_that_they_move() -> None:
    edits = measured_edits("sound/50-")
    assert len(edits) == 10
    assert all({"text_kl", "text_perplexity"} <= failing(checks) for checks in edits.values())


def test_punctuation_of_one_language_is_refused_by_its_texts_alone() -> None:
    (checks,) = measured_edits("bad/chinese-comma").values()
    assert failing(checks) == {"text_kl", "text_perplexity"}


def test_a_token_of_the_chat_template_is_refused() -> None:
    (checks,) = measured_edits("bad/chat-assistant").values()
    assert {"canary_kl_mean", "canary_moved"} <= failing(checks)
