"""The command about results that are there already, edits that are not judged, and plans of many requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emendo import __version__
from emendo.updates.update import ModelUpdate
from tests.tiny.conftest import Command
from tests.tiny.test_cli import FACT, OTHER, QUICK, RECORD, check_refused, jsonl

pytestmark = pytest.mark.usefixtures("home")


# ---- results that are there already, and what need not be measured ------------------------------------------------


def test_a_result_is_not_overwritten(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["edit", "--model", model, *QUICK, "--no-judge", "--out", str(out), "--quiet", *FACT]
    assert emendo(*arguments)[0] == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("emendo.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    check_refused(
        emendo(*arguments, "--target", "Tokyo"), ["holds the result of an edit", "--overwrite"], as_json=False
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert emendo(*arguments, "--target", "Tokyo", "--plan-only")[0] == 0, "a plan writes nothing"
    code, _, err = emendo(*arguments, "--target", "Tokyo", "--overwrite")
    assert code == 0, err
    report = json.loads((out / "report.json").read_text())
    assert report["requests"][0]["target"] == "Tokyo"
    assert report["update"]["id"] == ModelUpdate.load(out / "update.safetensors").id


def test_an_interrupt_of_overwriting_leaves_the_result_before_it(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["edit", "--model", model, *QUICK, "--no-judge", "--out", str(out), "--quiet", *FACT]
    assert emendo(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelUpdate, "save", killed)
    assert emendo(*arguments, "--target", "Tokyo", "--overwrite")[0] == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_the_demo_can_be_run_again(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Any, bool]] = []

    def run_edit(*arguments: Any, overwrite: bool, model: str) -> None:
        written.append((arguments[6], overwrite))

    monkeypatch.setattr("emendo.cli.demo.run_edit", run_edit)
    monkeypatch.setattr("emendo.models.load", lambda *_, **__: None)
    monkeypatch.setattr("emendo.editing.session.EditSession", lambda *_, **__: None)
    for folder in ("out/demo", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "update.safetensors").write_bytes(b"")
    assert emendo("demo", "--quiet")[0] == 0
    check_refused(emendo("demo", "--out", "other", "--quiet"), ["'other'", "--overwrite"], as_json=False)
    assert emendo("demo", "--out", "other", "--overwrite")[0] == 0
    assert written == [(Path("out/demo"), True), (Path("other"), True)]


def test_an_edit_without_a_judgement(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emendo.report.judge", lambda *_, **__: pytest.fail("the edit was judged"))
    out = tmp_path / "out"
    code, text, err = emendo("edit", "--model", model, *FACT, *QUICK, "--no-judge", "--out", str(out))
    assert code == 0, err
    assert "Nothing was judged" in text
    assert "Perplexity" not in text
    assert json.loads((out / "report.json").read_text())["judgement"] is None
    assert "Nothing was judged" in (out / "report.md").read_text()
    assert ModelUpdate.load(out / "update.safetensors").layers


def test_an_edit_goes_into_a_ledger_without_a_judgement(emendo: Command, model: str, tmp_path: Path) -> None:
    assert emendo("ledger", "init", "ledger", "--model", model)[0] == 0
    code, text, err = emendo("edit", "--model", model, *FACT, *QUICK, "--no-judge", "--ledger", "ledger", "--json")
    assert code == 0, err
    assert list(json.loads(text)["ledger"]["details"]["metrics"]) == ["layers"]
    assert emendo("ledger", "verify", "--ledger", "ledger")[0] == 0


def test_a_second_edit_does_not_measure_the_unedited_model_again(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "own"))
    perplexities = []
    for target in ("Tokyo", "Berlin", "Berlin"):
        fact = [*FACT, "--target", target, "--layers", "1"]  # the last layer reaches no answer
        code, text, err = emendo("edit", "--model", model, *fact, *QUICK, "--json")
        assert code == 0, err
        perplexities.append((err.count("perplexity:"), json.loads(text)["judgement"]["perplexity"]))
    assert [count for count, _ in perplexities] == [2, 1, 0]
    (_, first), (_, second), (_, again) = perplexities
    assert first["before"] == second["before"]
    assert second == again


# ---- plans -------------------------------------------------------------------------------------------------------


def test_a_plan_of_many_requests_shows_the_first(emendo: Command, model: str, tmp_path: Path) -> None:
    rows = [{**OTHER, "prompt": f"Text {i}{' and on' * 40}: {{}} is in", "subject": f"Subject {i}"} for i in range(45)]
    arguments = ("edit", "--model", model, "--requests", jsonl(tmp_path / "r.jsonl", *rows), "--plan-only")
    code, text, err = emendo(*arguments)
    assert code == 0, err
    assert "and 25 more" in text
    assert "Subject 19" in " ".join(text.split())
    assert "Subject 20" not in " ".join(text.split())
    assert "…" in text
    shown = json.loads(emendo(*arguments, "--json")[1])["requests"]
    assert [row["prompt"] for row in shown] == [row["prompt"] for row in rows]


def test_a_plan_says_where_there_is_nothing_to_change(emendo: Command, model: str, tmp_path: Path) -> None:
    same = {**RECORD, "target_true": " Rome"}
    for row, said in ((same, True), (RECORD, False), (OTHER, False)):
        requests = jsonl(tmp_path / "r.jsonl", row)
        code, text, err = emendo("edit", "--model", model, "--requests", requests, "--plan-only")
        assert code == 0, err
        assert ("target and target_true are the same" in text) is said


def test_nothing_in_a_request_acts_on_the_terminal(emendo: Command, model: str, tmp_path: Path) -> None:
    hostile = {**OTHER, "subject": "Ja\x1b[2Jpan", "id": "a\x1b]0;x\x07"}
    requests = jsonl(tmp_path / "r.jsonl", hostile)
    for more in (["--plan-only"], [*QUICK, "--out", "out"]):
        code, text, err = emendo("edit", "--model", model, "--requests", requests, *more)
        assert code == 0, err
        assert "\x1b" not in text + err
        assert "\\x1b[2J" in text
    assert "\x1b" not in (tmp_path / "out" / "report.md").read_text()


def test_the_version(emendo: Command) -> None:
    assert emendo("--version") == (0, f"emendo {__version__}\n", "")


def test_tables_leave_out_what_is_the_same_everywhere(emendo: Command, model: str) -> None:
    for method, shown in (("emmet", False), ("memit", True)):
        code, text, err = emendo("edit", "--model", model, *FACT, *QUICK, "--method", method, "--no-judge")
        assert code == 0, err
        assert ("effective" in text) is shown
