"""What people see of a command: no character of a file acts on their terminal, and a long stage gives signs of life."""

from __future__ import annotations

import json
import time
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from emendo.cli import console
from emendo.cli.console import Terminal, shortened
from emendo.io.printable import printable, printable_json

HOSTILE = "\x1b[2J\x1b]0;title\x07 a\rb\x00\x7f\x9b31m\u202eevil\u2066\ud800"


def acts(text: str) -> bool:
    return any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\ud800" for c in text)


def test_acting_characters_are_shown_as_python_writes_them() -> None:
    assert printable("\x1b[31mred\x9b\u202e\tx\n") == "\\x1b[31mred\\x9b\\u202e\\tx\\n"
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"


@pytest.mark.parametrize("text", ["naïve 東京 🗼", "👩‍👩‍👧", "\u0627\u0644", "[bold]", "a  b\\n"])
def test_other_text_stays(text: str) -> None:
    assert printable(text) == text


def test_json_means_the_same() -> None:
    document = json.dumps({HOSTILE: [HOSTILE]}, ensure_ascii=False, indent=2)
    assert json.loads(printable_json(document)) == json.loads(document)
    assert not acts(printable_json(document))


def test_nothing_from_a_file_acts(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.table(HOSTILE, ("a", HOSTILE), [(HOSTILE, "x"), (None, 1.0)])
    terminal.wide_table(HOSTILE, ("a", HOSTILE), [(HOSTILE, "x")])
    terminal.line(HOSTILE)
    terminal.message(HOSTILE)
    terminal.start(HOSTILE, 3)
    terminal.advance()
    terminal.finish()
    out, err = capsys.readouterr()
    for text in (out, err):
        assert "\\x1b[2J" in text.replace("\n", "")
        assert not acts(text)


def test_a_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().line("Paris is in\nUpdate: written")
    assert capsys.readouterr().out == "Paris is in\\nUpdate: written\n"


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.table("[i]t[/]", ("[b] and more",), [("[/i]",)])
    terminal.start("[link]stage")
    terminal.finish()
    out, err = capsys.readouterr()
    assert "[i]t[/]" in out
    assert "[b]" in out
    assert "[/i]" in out
    assert "[link]stage" in err


def test_a_stage_is_named_when_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.start("targets", 4)
    assert capsys.readouterr().err == "  targets …\n"
    terminal.finish()
    assert capsys.readouterr().err == "  targets: 0.0 s\n"


@pytest.mark.parametrize(
    ("total", "words"), [(65, "scoring: 5 of 65 after 31 s, about 372 s left"), (None, "scoring: 5 after 31 s")]
)
def test_a_long_stage_says_how_far_it_is(
    total: int | None, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    terminal = Terminal()
    terminal.start("scoring", total)
    terminal.advance(2)
    now += 29
    terminal.advance(2)
    assert capsys.readouterr().err == "  scoring …\n"
    now += 2
    terminal.advance()
    now += 29
    terminal.advance()
    assert capsys.readouterr().err == f"  {words}\n"
    now += 1
    terminal.advance()
    assert "7" in capsys.readouterr().err


def test_steps_of_searches_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    terminal = Terminal()
    terminal.start("targets", 50)
    now += 40
    terminal.advance(25)
    terminal.finish()
    shown = capsys.readouterr().err.splitlines()
    assert shown[1:] == ["  targets, steps of the search: 25 of 50 after 40 s, about 40 s left", "  targets: 40.0 s"]


def test_a_terminal_is_told_within_a_second_that_a_command_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command imports takes several."""

    def shown(wait: float, **options: bool) -> str:
        stream = StringIO()
        monkeypatch.setattr(console, "Console", lambda **_: RichConsole(file=stream, force_terminal=True, quiet=quiet))
        quiet = options.get("quiet", False)
        terminal = Terminal(**options)
        if not wait:
            terminal.message("here it is")
        time.sleep(0.5)
        return stream.getvalue()

    assert "starting …" in shown(1)
    assert "starting …" not in shown(0)
    assert "starting …" not in shown(1, quiet=True)


def test_it_is_said_once_that_second_moments_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    for _ in range(2):
        terminal.start("second moments", 10)
        terminal.finish()
    assert " ".join(capsys.readouterr().err.split()).count("Collecting key statistics") == 1


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.start("second moments", 10)
    terminal.advance()
    terminal.finish()
    terminal.message("a word")
    assert capsys.readouterr().err == ""


def test_shortened() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"
