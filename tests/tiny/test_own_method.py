"""A method from a YAML file goes through the command, a ledger and an evaluation like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emendo.ledger import History, LedgerStore
from tests.experiment_cases import write_records
from tests.tiny.conftest import Command

pytestmark = pytest.mark.usefixtures("home")

OWN = """
base: memit
name: short-memit
layers: [1, 2]
settings:
  target: {steps: 2}
  contexts.scheme: fixed
  moments.multiple: 4
"""


def fact(subject: str, target: str) -> list[str]:
    return ["--prompt", "The capital of {} is", "--subject", subject, "--target", target]


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN, encoding="utf-8")
    return str(path)


def test_an_edit_by_a_file_is_replayed_without_it(emendo: Command, model: str, own: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "ledger")
    assert emendo("ledger", "init", folder, "--model", model)[0] == 0
    for subject, target in (("Japan", "Rome"), ("France", "Tokyo")):
        arguments = [
            "edit",
            "--model",
            model,
            *fact(subject, target),
            "--method",
            own,
            "--ledger",
            folder,
            "--no-judge",
        ]
        code, text, err = emendo(*arguments, "--json")
        assert code == 0, err
        method = json.loads(text)["method"]
        assert method["name"] == "short-memit"
        assert method["origins"]["target.steps"] == "given (mine.yaml)"
        assert method["settings"]["layers"] == [1, 2]
    Path(own).unlink()
    first, second = History(LedgerStore(folder).chain()).edits()
    code, _, err = emendo("ledger", "revert", first.id[:12], "--ledger", folder)
    assert code == 0, err
    (left,) = History(LedgerStore(folder).chain()).edits()
    assert left.method == second.method, "planned again with the values of the file"


def test_an_evaluation_keeps_what_the_file_says(emendo: Command, model: str, own: str, tmp_path: Path) -> None:
    data = write_records(tmp_path / "records.jsonl", 2)
    out = tmp_path / "out"
    arguments = ["eval", "--model", model, "--data", data, "--n", "2", "--method", own, "--out", str(out), "--json"]
    code, text, err = emendo(*arguments, "--set", "target.steps=3")
    assert code == 0, err
    summary = json.loads(text)
    assert summary["cell"]["method"] == "memit"
    assert summary["cell"]["layers"] == [1, 2]
    assert summary["cell"]["settings"] == {"contexts.scheme": "fixed", "moments.multiple": 4.0, "target.steps": "3"}


def test_a_file_that_cannot_be_used_is_told_before_the_model(emendo: Command, own: str) -> None:
    Path(own).write_text("base: memit\nsettings: {target.step: 2}\n", encoding="utf-8")
    code, _, err = emendo("edit", "--model", "nowhere", *fact("Japan", "Rome"), "--method", own)
    assert code == 2
    assert "mine.yaml" in err
    assert "did you mean 'target.steps'" in err
