"""`emendo eval` and `emendo experiment` as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from emendo.datasets import load_records
from tests.dataset_rows import ZSRE
from tests.experiment_cases import CHEAP, QUICK, grid, write_records, write_zsre
from tests.tiny.conftest import Command

SET = [text for name, value in QUICK.items() for text in ("--set", f"{name}={value}")]

pytestmark = pytest.mark.usefixtures("home", "settled_heap", "small_pictures")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_records(tmp_path / "records.jsonl")


def test_eval_tells_what_its_numbers_are_of(emendo: Command, model: str, data: str, tmp_path: Path) -> None:
    arguments = ("eval", "--model", model, "--data", data, "--n", "4", "--mode", "sequential-batched")
    arguments += ("--batch-size", "2", "--seed", "3", *SET, "--out", str(tmp_path / "out"))
    code, text, err = emendo(*arguments)
    assert code == 0, err
    flat = " ".join(text.split())
    for words in (
        "mode sequential-batched, batch size 2",
        "n = 4, seed 3",
        "schedule both",
        "before",
        "immediate",
        "final",
    ):
        assert words in flat
    for words in ("Perplexity of a held-out text", "‖ΔW‖/‖W‖", "peak MiB", "scoring before", "retention"):
        assert words in text
    again = emendo(*arguments, "--json", "--quiet")
    summary = json.loads(again[1])
    assert again[0] == 0
    assert summary["cell"]["n"] == 4
    stored = json.loads((tmp_path / "out" / "cells" / summary["cell"]["id"] / "summary.json").read_text())
    assert stored == summary


def test_eval_of_zsre_shows_the_scores_of_zsre(emendo: Command, model: str, tmp_path: Path) -> None:
    data = write_zsre(tmp_path / "zsre.jsonl")
    arguments = ("eval", "--model", model, "--data", data, "--n", "3", *SET)
    code, text, err = emendo(*arguments, "--measure", "generated", "--measure", "probes", "--measure", "entropy")
    assert code == 0, err
    for words in ("zsRE token accuracy", "zsRE efficacy", "score", "Generated answers", "locality_argmax", "(bits)"):
        assert words in text
    assert " S " not in text.splitlines()[0]


def test_a_format_is_named_for_every_command_that_takes_facts(emendo: Command, model: str, tmp_path: Path) -> None:
    """Rows of zsRE are read with the answer, or with the alternative, as the target."""
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps([ZSRE]))
    more = ["--format", "zsre-easyedit"]
    assert load_records(path).source["format"] == "zsre"
    common = ("eval", "--model", model, "--data", str(path), "--n", "1", *SET, "--json", "--quiet")
    cells = []
    for options in ([], more):
        code, text, err = emendo(*common, *options, "--plan-only")
        assert code == 0, err
        cells.append(json.loads(text)["cell"])
    assert "format" not in cells[0], "as it was before formats could be named"
    assert cells[1]["format"] == "zsre-easyedit"
    assert cells[0]["id"] != cells[1]["id"]
    code, text, err = emendo(*common, *more)
    assert code == 0, err
    assert json.loads(text)["zsre"], "the score of the format goes with it"
    grid_file = tmp_path / "grid.yaml"
    grid_file.write_text(
        yaml.safe_dump({"name": "one", "data": str(path), "models": [model], "n": 1, "methods": ["emmet"]})
    )
    code, text, err = emendo("experiment", str(grid_file), *more, "--plan-only", "--json", "--quiet")
    assert code == 0, err
    assert {cell["format"] for cell in json.loads(text)["cells"]} == {"zsre-easyedit"}
    for command in ("trace", "layers"):
        code, _, err = emendo(command, "--model", model, "--facts", str(path), "--format", "zrse")
        assert code == 2
        assert "did you mean 'zsre'?" in err


def test_eval_without_a_folder_leaves_none(emendo: Command, model: str, data: str, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    code, out, err = emendo("eval", "--model", model, "--data", data, "--n", "2", *SET, "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out)["scores"]["final"] is None
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mode", "sequental"), "did you mean 'sequential'"),
        (("--mode", "batch", "--schedule", "final"), "--mode sequential-batched"),
        (("--method", "emet"), "did you mean 'emmet'"),
        (("--set", "target.stps=3"), "target.steps"),
        (("--part", "devel"), "did you mean 'dev'"),
        (("--measure", "probs"), "did you mean 'probes'"),
        (("--measure", "probes"), "has a probe"),
        (("--n", "400"), "n=400"),
        (("--n", "0"), "expected at least 1 record, found 0 (--n)"),
        (("--data", "nosuch.jsonl"), "cannot read the data set 'nosuch.jsonl'"),
    ],
)
def test_eval_refuses_what_cannot_be(
    arguments: tuple[str, ...],
    words: str,
    emendo: Command,
    model: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("emendo.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    code, _, err = emendo("eval", "--model", model, "--data", data, "--n", "4", "--out", "out", *arguments, "--quiet")
    assert code == 2
    assert words in err
    assert "batch_size=0" not in err, "a batch size that was not given"
    assert not (tmp_path / "out").exists()


def test_an_experiment_is_planned_run_and_taken_up(emendo: Command, model: str, data: str, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(grid(model, data)))
    code, out, err = emendo("experiment", str(file), "--plan-only", "--json", "--quiet")
    assert code == 0, err
    plan = json.loads(out)
    assert not (tmp_path / "runs").exists()
    assert len(plan["cells"]) == 4
    assert (plan["to_do"]["edits"], plan["time_left"]) == (16, None)
    assert plan["to_do"]["shared_searches"] == 4  # the second batch size of EMMET
    code, out, err = emendo("experiment", str(file))
    assert code == 0, err
    assert "[4/4]" in err
    assert "left" in err, "the time left is told as soon as a cell has been measured"
    folder = tmp_path / "runs" / "small"
    written = {path.name: (path / "summary.json").read_bytes() for path in (folder / "cells").iterdir()}
    assert set(written) == {entry["id"] for entry in plan["cells"]}
    document = json.loads((folder / "experiment.json").read_text())
    assert (document["format"], document["version"], document["name"]) == ("emendo.experiment", 1, "small")
    assert set(document["base"]) == {"models", "data", "devices"}
    code, out, _ = emendo("experiment", str(file), "--json", "--quiet")
    assert [entry["cell"]["id"] for entry in json.loads(out)["cells"]] == [entry["id"] for entry in plan["cells"]]
    assert {path.name: (path / "summary.json").read_bytes() for path in (folder / "cells").iterdir()} == written
    code, out, _ = emendo("experiment", str(file), "--plan-only", "--quiet")
    assert "0 edits" in out
    file.write_text(yaml.safe_dump(grid(model, data) | {"measures": CHEAP | {"samples": 0}}))
    code, _, err = emendo("experiment", str(file), "--quiet")
    assert code == 2
    assert "measures was" in err
