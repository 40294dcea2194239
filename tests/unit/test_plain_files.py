"""Files that somebody else names: only plain ones are opened, and only up to a size."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from emendo.cli.app import run
from emendo.errors import ExperimentError, GateConfigError
from emendo.experiments.cells import Measures
from emendo.experiments.config import read_config as read_experiment
from emendo.experiments.ground import held_out_text
from emendo.gate import read_canaries, read_config
from emendo.io.plain_file import check_plain, read_plain_text


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    Path("link").symlink_to("pipe")
    Path("huge").write_bytes(b"")
    os.truncate("huge", 2**36)
    names = {"pipe": "a pipe", "link": "a pipe", "socket": "a socket", ".": "a folder", "/dev/zero": "a device"}
    return {**names, "huge": "68,719,476,736 bytes", "gone": "No such file"}


NAMES = ("pipe", "link", "socket", ".", "/dev/zero", "huge", "gone")


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_refuses_what_is_no_plain_file(special: dict[str, str], name: str) -> None:
    """A pipe would wait for ever, a device fill the memory."""
    begin = time.perf_counter()
    with pytest.raises((OSError, ValueError), match=special[name]):
        read_plain_text(Path(name))
    with pytest.raises(GateConfigError, match=special[name]):
        read_config(name)
    with pytest.raises(GateConfigError, match=special[name]):
        read_canaries([name])
    with pytest.raises(ExperimentError, match=special[name]):
        read_experiment(Path(name))
    with pytest.raises(ExperimentError, match=special[name]):
        held_out_text(Measures(perplexity=True, perplexity_text=name))
    assert time.perf_counter() - begin < 5


def test_text_is_read_as_text_files_are(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content in (b"a\r\nb\rc\n", b"\xef\xbb\xbfa\n", "ä\u2028\n".encode(), b""):
        path.write_bytes(content)
        assert read_plain_text(path) == path.read_text(encoding="utf-8-sig")
        assert read_plain_text(path, encoding="utf-8") == path.read_text(encoding="utf-8")
        assert check_plain(path) == len(content)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_plain_text(path)
    path.write_bytes(b"12345")
    with pytest.raises(ValueError, match="5 bytes, expected at most 4"):
        read_plain_text(path, most=4)


@pytest.mark.parametrize(
    "key", ["a" + ".a" * 20_000, "[" + "a." * 20_000 + "a]", "x = {" + '"a" . ' * 20_000 + "a = 1}"]
)
def test_a_dotted_key_of_a_gate_that_takes_the_square_of_its_length(
    tmp_path: Path, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(f"{key} = 1\n", encoding="utf-8")
    begin = time.perf_counter()
    assert run(["gate", "--model", "demo", "--update", "u", "--config", str(path)]) == 2
    assert time.perf_counter() - begin < 5
    assert "a key of 20 parts or more" in capfd.readouterr().err


@pytest.mark.parametrize("name", [name for name in NAMES if name != "huge"])
@pytest.mark.parametrize("command", [["data"], ["edit", "--model", "x", "--requests"]])
def test_no_command_waits_for_facts_that_never_come(
    special: dict[str, str], name: str, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    begin = time.perf_counter()
    assert run([*command, name]) == 2
    assert special[name] in capfd.readouterr().err
    assert time.perf_counter() - begin < 5


def test_a_pipe_that_the_shell_hands_over_is_read() -> None:
    """`emendo data <(zcat facts.gz)`."""
    there, away = os.pipe()
    os.write(away, b'{"prompt": "{} is in", "subject": "Paris", "target": "Rome"}\n')
    os.close(away)
    try:
        assert run(["data", f"/dev/fd/{there}", "--quiet"]) == 0
    finally:
        os.close(there)
