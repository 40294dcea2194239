"""`emendo data`: what it prints for people and as JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emendo.cli.app import run
from emendo.datasets import FORMATS

ROWS = [
    {"prompt": "{} is in", "subject": "Paris", "target": "Rome", "id": "a", "paraphrase_prompts": ["p", "q"]},
    {"prompt": "no slot", "subject": "Oslo", "target": "Rome"},
    {"prompt": "{} is in", "subject": "[bold]Bonn", "target": "Rome", "target_true": "Germany"},
]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return str(file)


def test_for_people(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", path]) == 0
    out = capsys.readouterr().out
    for part in ("emendo", "jsonl", "3, 2 kept, 1 rejected", "a: Paris is in → Rome", "[bold]Bonn is in", "Germany"):
        assert part in out
    assert "prompt must hold exactly one {} for the subject, found 0: 'no slot'" in out


def test_as_json(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", path, "--json", "--examples", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["rows"], document["kept"], document["records"]) == ("emendo", 3, 2, 2)
    assert document["rejected"] == {"prompt must hold exactly one {} for the subject": 1}
    assert document["rejected_rows"][0]["line"] == 2
    assert document["contents"] == {
        "records": 2,
        "distinct subjects": 2,
        "with target_true": 1,
        "paraphrase_prompts": 2,
    }
    assert document["examples"] == [ROWS[0]]


def test_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "--formats", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["formats"]) == list(FORMATS)
    assert document["formats"]["zsre-easyedit"]["recognised"] is False
    assert run(["data", "--formats"]) == 0
    assert "known-facts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no data set is named"),
        (["--format", "x"], "unknown data format 'x'"),
        (["--format", "zsre"], "none of its 3"),
    ],
)
def test_bad_input_is_exit_code_2(
    path: str, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", *([path] if arguments else []), *arguments]) == 2
    assert reason in capsys.readouterr().err
