"""The default limits against the measured runs (benchmarks/results): the monitor warns before a real collapse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emendo.gate import default_config
from emendo.gate.checks import AT_LEAST
from emendo.io.former_names import MONITOR_FIELDS, with_current_names

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LIMITS = default_config().monitor.limits()


def rows(method: str) -> list[dict[str, Any]]:
    lines = (RESULTS / "collapse.jsonl").read_text().splitlines()
    found = [with_current_names(json.loads(line), MONITOR_FIELDS) for line in lines[1:]]
    return [row for row in found if row["method"] == method and row["step"] > 0]


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


def failing(checks: dict[str, Any], facts: int) -> set[str]:
    found = set()
    for name, check in default_config().checks.declared().items():
        value, limit = checks.get(name, {}).get("measured"), check.limit_for(facts)
        if value is not None and (value < limit if name in AT_LEAST else value > limit):
            found.add(name)
    return found


def gate_runs() -> dict[str, set[str]]:
    """The checks that each run fails now; its name begins with the method and its facts."""
    lines = (RESULTS / "gate.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    return {row["run"]: failing(row["checks"], int(row["run"].split()[1])) for row in rows}


@pytest.mark.parametrize("run", [run for run in gate_runs() if run.startswith("emendo")])
def test_the_default_gate_lets_a_good_edit_in(run: str) -> None:
    assert gate_runs()[run] == set()


def test_the_default_gate_keeps_the_collapse_out() -> None:
    runs = gate_runs()
    assert len(runs["rome, 11 edits one by one"]) >= 8
    early = runs["rome, 3 edits one by one"]
    assert {"norm_growth", "relative_cost", "neighborhood_lost", "canary_kl_mean"} <= early


# ---- sound and bad edits (benchmarks/gate.py) ------------------------------------------------------------------


def measured_edits(kind: str) -> dict[str, set[str]]:
    """The checks that each edit of a kind fails now."""
    lines = (RESULTS / "gate_edits.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines[1:]) if row["edit"].startswith(kind)]
    return {
        row["edit"]: failing({name: {"measured": value} for name, value in row["checks"].items()}, row["facts"])
        for row in rows
    }


@pytest.mark.parametrize("size", ["01", "10", "50"])
def test_ten_sound_edits_of_each_size_pass(size: str) -> None:
    edits = measured_edits(f"sound/{size}-")
    assert len(edits) == 10
    assert edits == {name: set() for name in edits}


def test_bad_edits_are_refused() -> None:
    edits = measured_edits("bad/")
    assert len(edits) >= 30
    # The second moment knows the comma so well that a fact keyed at it does little harm (docs/lab/gate.md).
    assert [name for name, failed in edits.items() if not failed] == ["bad/comma", "bad/hidden-comma"]


@pytest.mark.parametrize("name", ["chinese-comma", "chinese-stop", "question-mark"])
def test_punctuation_that_one_kind_of_text_shares_is_refused_by_texts_alone(name: str) -> None:
    failed = measured_edits(f"bad/{name}")[f"bad/{name}"]
    assert failed >= {"text_kl", "text_perplexity"}
    assert failed <= {"text_kl", "text_perplexity", "text_token", "text_firing"}
