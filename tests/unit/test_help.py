"""Help by -h and completion by Tab, through the command as a shell calls it."""

from __future__ import annotations

import pytest

from emendo.cli.app import run


@pytest.mark.parametrize("command", [[], ["edit"], ["ledger"], ["export", "peft"], ["methods"]])
def test_a_short_flag_shows_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "-h"]) == 0
    short = capsys.readouterr().out
    assert run([*command, "--help"]) == 0
    assert short == capsys.readouterr().out
    assert short.startswith(" ".join(["Usage: emendo", *command]))


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("emendo ex", ["experiment", "export"]),
        ("emendo edit --met", ["--method"]),
        ("emendo edit --method me", ["memit", "memit-history", "memit-merge"]),
        ("emendo methods ro", ["rome"]),
        ("emendo nothing-like-it", []),
    ],
)
def test_tab_completes(
    words: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    monkeypatch.setenv("_EMENDO_COMPLETE", "complete_bash")
    run([])
    assert sorted(capsys.readouterr().out.split()) == completed
