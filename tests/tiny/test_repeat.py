"""`emendo edit --repeat`: facts from standard input, each written at once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from emendo import ModelUpdate
from tests.tiny.conftest import Command

QUICK = ["--set", "target.steps=3", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4"]
FACTS = [
    {"prompt": "The capital of {} is", "subject": "Japan", "target": "Rome"},
    {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target": "Paris"},
    {"prompt": "{} was born in", "subject": "Danielle Darrieux", "target": "Bordeaux"},
]


def lines(*given: object) -> io.StringIO:
    return io.StringIO("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in given))


def test_each_line_is_a_fact_and_a_bad_one_stops_nothing(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", lines(FACTS[0], "no JSON", "", {"prompt": "no slot"}, FACTS[1], "undo", FACTS[1], FACTS[2])
    )
    out = tmp_path / "facts.safetensors"
    code, printed, err = emendo(
        *("edit", "--model", model, "--repeat", "--method", "emmet", "--layers", "1"),
        *(*QUICK, "--set", "distribution=single", "--out", str(out), "--json"),
    )
    assert code == 0, err
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["written"] for row in rows] == [1, 1, 1, 2, 1, 2, 3]
    assert "expected a fact a line" in rows[1]["error"]
    assert "slot" in rows[2]["error"] or "{}" in rows[2]["error"]
    assert rows[4]["undone"] == rows[3]["update"]
    assert rows[5]["update"] == rows[3]["update"], "undone means as it was"
    assert rows[0]["seconds"] > rows[0]["search_seconds"] > 0
    saved = ModelUpdate.load(out)
    assert [part["id"] for part in saved.info["merged"]] == [rows[0]["update"], rows[5]["update"], rows[6]["update"]]


def test_what_goes_with_one_plan_is_refused_before_the_model_is_loaded(emendo: Command, tmp_path: Path) -> None:
    alone = (
        "--subject",
        "x",
        "--chat",
        "--no-judge",
        "-m",
        "why",
        "--plan-only",
        "--gate",
        "default",
        "--workers",
        "1",
    )
    code, _, err = emendo("edit", "--model", "nosuch", "--repeat", *alone)
    assert code == 2
    excluded = err.split("it excludes ")[1].replace("\n", " ").split(", ")
    named = {"--subject", "--chat", "--no-judge", "--plan-only", "--message", "--gate", "--workers"}
    assert {one.strip() for one in excluded} == named, "none is ignored without a word"
    code, _, err = emendo(
        "edit", "--model", "nosuch", "--repeat", "--out", str(tmp_path / "facts.safetensors" / "x" / "")
    )
    assert code == 2
    there = tmp_path / "facts.safetensors"
    there.write_bytes(b"kept")
    code, _, err = emendo("edit", "--model", "nosuch", "--repeat", "--out", str(there))
    assert code == 2
    assert "--overwrite" in err
    assert there.read_bytes() == b"kept"
    code, _, err = emendo("edit", "--model", "nosuch", "--repeat", "--out", str(there / "inside"))
    assert code == 2
    assert "expected a folder" in err


def test_undo_with_nothing_written_says_so(emendo: Command, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", lines("undo"))
    code, printed, _ = emendo(
        *("edit", "--model", model, "--repeat", "--method", "emmet", "--layers", "1", *QUICK),
        *("--set", "distribution=single"),
    )
    assert code == 0
    assert "Nothing to undo" in printed
