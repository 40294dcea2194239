"""`emendo edit --gate` and `emendo gate`: a failing edit is kept out, and a file is judged as its edit was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emendo.gate.config import parse_config
from emendo.ledger import EditLedger
from emendo.updates.update import ModelUpdate
from tests.tiny.conftest import Command
from tests.tiny.gate_cases import EVERYTHING
from tests.tiny.test_cli import FACT, QUICK, RECORD, jsonl

OTHER = ["--prompt", "{} speaks", "--subject", "Japan", "--target", "Rome"]
STRICT = "[checks.norm_growth]\nlimit = 0\n"
LOOSE = "[checks.norm_growth]\nlimit = 1e9\n[checks.paraphrase]\nlimit = 0\n"


@pytest.mark.usefixtures("home")
def test_a_failing_edit_is_not_written_unless_forced(emendo: Command, model: str, tmp_path: Path) -> None:
    (tmp_path / "strict.toml").write_text(STRICT)
    base = ["edit", "--model", model, *FACT, *QUICK, "--layers", "1", "--gate", str(tmp_path / "strict.toml")]
    code, out, err = emendo(*base, "--out", "kept")
    assert code == 1
    assert "1 of 1 checks of the gate fail" in err
    assert "norm_growth" in err
    assert "off by" in err
    assert "--force" in err
    assert "Gate, compared with the unedited model" in out
    assert not Path("kept").exists()
    code, out, err = emendo(*base, "--json", "--quiet", "--out", "kept")
    document = json.loads(out)
    assert (code, err) == (1, "")
    assert (document["gate"]["passed"], document["gate"]["forced"], document["files"]) == (False, False, {})
    assert not Path("kept").exists()
    code, out, err = emendo(*base, "--force", "--out", "kept")
    assert code == 0, err
    assert "--force overrides it" in out
    assert ModelUpdate.load("kept/update.safetensors").info["gate"]["forced"] is True
    assert "Gate: the edit fails, and was overridden" in Path("kept/report.md").read_text()
    assert json.loads(Path("kept/report.json").read_text())["gate"]["forced"] is True


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("more", [[], ["--json", "--quiet"], ["--replace"]])
def test_a_refused_edit_leaves_the_ledger_byte_for_byte(
    more: list[str], emendo: Command, model: str, tmp_path: Path
) -> None:
    (tmp_path / "strict.toml").write_text(STRICT)
    ledger = tmp_path / "facts"
    assert emendo("ledger", "init", str(ledger), "--model", model)[0] == 0
    base = ["edit", "--model", model, *QUICK, "--layers", "1", "--ledger", str(ledger)]
    assert emendo(*base, *FACT)[0] == 0
    before = {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file()}
    other = [{"Rome": "Oslo"}.get(word, word) for word in FACT] if more == ["--replace"] else OTHER
    assert other != FACT
    limits = ["--gate", str(tmp_path / "strict.toml")]
    code, _, err = emendo(*base, *other, *limits, *more)
    assert code == 1, err
    assert {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file()} == before
    code, out, err = emendo(
        *base, *other, *limits, *(["--replace"] if "--replace" in more else []), "--force", "--json"
    )
    assert code == 0, err
    record = json.loads(out)["ledger"]
    assert record["details"]["gate"]["forced"] is True, "the record says that it was forced"
    assert ModelUpdate.load(ledger / "objects" / f"{record['added'][-1]['file']}.safetensors").info["gate"]["forced"]
    assert EditLedger(ledger).verify().ok


@pytest.mark.usefixtures("home")
def test_a_file_is_judged_as_its_edit_was(emendo: Command, model: str, tmp_path: Path) -> None:
    (tmp_path / "loose.toml").write_text(LOOSE)
    (tmp_path / "strict.toml").write_text(STRICT)
    requests = jsonl(tmp_path / "requests.jsonl", RECORD)
    edit = ["edit", "--model", model, "--requests", requests, *QUICK, "--layers", "1", "--out", "out"]
    code, out, err = emendo(*edit, "--gate", str(tmp_path / "loose.toml"), "--json")
    assert code == 0, err
    passed = json.loads(out)["gate"]
    assert (passed["passed"], passed["forced"]) == (True, False)
    judge = ["gate", "--model", model, "--update", "out/update.safetensors", "--requests", requests]
    code, out, err = emendo(*judge, "--config", str(tmp_path / "loose.toml"), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found.pop("verdict")["gate"] == "passed"
    assert found == passed
    code, out, err = emendo(*judge, "--config", str(tmp_path / "strict.toml"))
    assert (code, "1 of 1 checks" in err) == (1, True)
    code, out, err = emendo(*judge, "--config", str(tmp_path / "strict.toml"), "--json", "--quiet")
    assert (code, err, json.loads(out)["passed"]) == (1, "", False)
    # Without --requests the file's own requests are asked; it has no paraphrases.
    code, out, err = emendo(*judge[:5], "--config", str(tmp_path / "loose.toml"))
    assert code == 1
    assert "paraphrase: not measured: no record has paraphrase_prompts (--requests FILE)" in err


@pytest.mark.usefixtures("home")
def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(emendo: Command, tmp_path: Path) -> None:
    edit = ["edit", "--model", "/nowhere", *FACT]
    (tmp_path / "own.toml").write_text(STRICT + '[canaries]\nfiles = ["mine.jsonl"]\n')
    for options, words in (
        (["--force"], "add --gate default"),
        (["--gate", "missing.toml"], "cannot read a gate's configuration"),
        (["--gate", str(tmp_path / "own.toml")], "cannot read canaries"),
    ):
        code, _, err = emendo(*edit, *options)
        assert (code, words in err) == (2, True), err
    assert emendo("gate")[0] == 2
    code, _, err = emendo("gate", "--model", "/nowhere", "--update", "missing.safetensors")
    assert (code, "missing.safetensors" in err) == (2, True)


def test_the_printed_default_is_a_configuration(emendo: Command) -> None:
    code, out, err = emendo("gate", "--print-default")
    assert (code, err) == (0, "")
    assert parse_config(out, "printed") == EVERYTHING
