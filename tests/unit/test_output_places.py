"""Places for results that cannot be written are found before the work; standard output that fails ends in one line."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from emendo.cli.app import main, run
from emendo.errors import OutputError
from emendo.io import writable
from emendo.io.whole_folder import check_absent
from emendo.io.writable import check_room, check_writable, check_writable_file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("place", ["folder", "new", "new/deep/er", "folder/new", "."])
def test_places_that_can_be_written(here: Path, place: str) -> None:
    before = files(here)
    check_writable(Path(place))
    check_writable(here / place)
    check_writable_file(Path(place) / "f")
    check_absent(here / place / "x")
    assert files(here) == before


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "is a file, expected a folder"),
        ("file/below/it", "is a file, expected a folder"),
        ("x" * 300, "name too long"),
        ("x" * 250, "name too long"),  # of the draft beside it
        ("new/" + "x" * 300, "name too long"),
        ("a\0b", "null"),
        ("/proc/emendo", "/proc"),
        ("/proc/emendo/deep", "/proc"),
        ("/sys/emendo", "/sys"),
    ],
)
def test_places_that_cannot_be_written(here: Path, place: str, words: str) -> None:
    """Root may do anything in /proc by its permissions, and nothing in fact."""
    before = files(here)
    with pytest.raises(OutputError, match=f"(?i){words}.*GO ELSEWHERE"):
        check_writable(Path(place), "GO ELSEWHERE")
    with pytest.raises(OutputError, match="GO ELSEWHERE"):
        check_writable_file(Path(place) / "f", "GO ELSEWHERE")
    assert files(here) == before


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EDQUOT, errno.ENOSPC, errno.EACCES, errno.EPERM])
def test_what_permissions_do_not_tell(here: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """A read-only mount, a quota, a full disk."""

    def refuse(*args: Any, **options: Any) -> NoReturn:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(OutputError, match=r"cannot write to .*--out"):
        check_writable(Path("folder"))


def test_a_file_is_no_folder(here: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder, expected a file"):
        check_writable_file(Path("folder"))
    check_writable_file(Path("file"))
    with pytest.raises(OutputError, match="name too long"):
        check_writable_file(Path("x" * 250))


def test_a_disk_without_room(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(Path("new/deep"), 1)
    monkeypatch.setattr(writable.shutil, "disk_usage", lambda at: SimpleNamespace(free=2**30))
    with pytest.raises(OutputError, match=r"1024\.00 GiB are needed and 1\.00 GiB are free .*--out"):
        check_room(Path("new/deep"), 2**40)


def test_a_mount_point_cannot_become_an_export(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "folder")
    with pytest.raises(OutputError, match="mount point"):
        check_absent(here / "folder")


# ---- commands ---------------------------------------------------------------------------------------------------

FACT = ["--prompt", "{} is in", "--subject", "Paris", "--target", "Rome"]
COMMANDS = {
    "edit": ["edit", "--model", "nothing/here", *FACT, "--out"],
    "demo": ["demo", "--out"],
    "ledger init": ["ledger", "init", "--model", "nothing/here"],
    "eval": ["eval", "--model", "nothing/here", "--data", "facts.jsonl", "--out"],
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("place", ["file/below", "/proc/emendo", "x" * 300])
def test_no_model_is_loaded_for_a_place_that_cannot_be_written(
    here: Path, command: str, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "facts.jsonl").write_text(json.dumps(dict(zip(("prompt", "subject", "target"), FACT[1::2], strict=True))))
    monkeypatch.setattr("emendo.models.load", lambda *args, **options: pytest.fail("a model was loaded"))
    assert run([*COMMANDS[command], place]) == 2
    assert "cannot write" in capfd.readouterr().err


# ---- standard output --------------------------------------------------------------------------------------------


PRINTING = (["methods"], ["methods", "--json"], ["--help"], ["nonsense", "--json"], ["--version"])


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_standard_output_on_a_full_disk(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "emendo: cannot write to standard output: No space left on device; send it elsewhere"
    assert len(lines) == 1 + (arguments[0] == "nonsense")


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["--help"]])
def test_a_reader_that_goes_away(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, away = os.pipe()
    os.close(there)
    with open(away, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(arguments) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["models"]])
def test_a_terminal_with_another_alphabet(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    if "--json" in arguments:
        text = written.getvalue().decode("ascii")
        plain = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(plain, encoding="utf-8", write_through=True))
        run(arguments)
        assert json.loads(text) == json.loads(plain.getvalue())


def test_an_error_of_another_file_is_not_taken_for_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "elsewhere")

    monkeypatch.setattr("emendo.cli.catalog.Terminal", fail)
    with pytest.raises(OSError, match="elsewhere"):
        run(["methods"])
