"""`emendo update`: what it prints and writes, and what it refuses; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.cli.app import run
from emendo.updates.fold import fold
from emendo.updates.merge import merge, scale
from emendo.updates.update import ModelUpdate
from tests.unit.sequences import made, world

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def emendo(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["update", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def updates(tmp_path: Path) -> list[ModelUpdate]:
    """Three updates of one sequence, in files a, b and c."""
    found = list(made(world((2, 5, 1), (0, 2)), range(3), torch.float32))
    for name, update in zip("abc", found, strict=True):
        update.save(tmp_path / name)
    return found


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def test_show(emendo: Command, updates: list[ModelUpdate]) -> None:
    shown = document(emendo("show", "b", "--json"))
    assert shown["id"] == updates[1].id
    assert shown["preceding"] == {**updates[1].preceding.to_dict(), "count": 1, "last": updates[0].id}
    assert shown["origin"] == "method test"
    assert [row["subject"] for row in shown["requests"]] == [f"1-{n}" for n in range(5)]
    first = shown["layers"][0]
    assert (first["layer"], first["rank"], first["keys"], first["d_out"], first["d_in"]) == (0, 5, 5, 6, 12)
    assert first["break_even"] == 4
    assert first["norm"] == pytest.approx(float(updates[1].layers[0].delta().norm()), rel=1e-5)
    code, out, _ = emendo("show", "b")
    assert code == 0
    for words in (updates[1].id, "linear", f"{updates[0].id[:12]}…", "method test", "1-4", "Layer N is layers.N.down"):
        assert words in out


def test_show_takes_the_folder_of_an_edit(emendo: Command, updates: list[ModelUpdate], tmp_path: Path) -> None:
    updates[0].save(tmp_path / "edit" / "update.safetensors")
    shown = document(emendo("show", "edit", "--json"))
    assert shown["id"] == updates[0].id
    assert shown["preceding"]["count"] == 0


def test_show_names_modules_that_differ(emendo: Command, updates: list[ModelUpdate], tmp_path: Path) -> None:
    first, second = updates[1].layers
    replace(updates[1], layers=(first, replace(second, module="other.2.down"))).save(tmp_path / "odd")
    out = emendo("show", "odd")[1]
    assert "other.2.down" in out
    assert "Layer N is" not in out


@pytest.mark.parametrize("command", [("show",), ("scale", "--factor", "2", "--out", "new"), ("fold", "--out", "new")])
def test_what_is_not_there_is_said_to_be_missing(command: tuple[str, ...], emendo: Command, tmp_path: Path) -> None:
    code, _, err = emendo(command[0], "nosuch", *command[1:])
    assert code == 2
    assert "there is no file at 'nosuch'; expected an update" in err
    (tmp_path / "empty").mkdir()
    code, _, err = emendo(command[0], "empty", *command[1:])
    assert code == 2
    assert "the folder 'empty' holds no update.safetensors" in err


def test_merge(emendo: Command, updates: list[ModelUpdate], tmp_path: Path) -> None:
    result = document(emendo("merge", "a", "b", "c", "--out", "new/sum", "--json"))
    written = ModelUpdate.load(tmp_path / "new" / "sum")
    assert written.id == merge(updates).id == result["update"]["id"]
    assert result["update"]["origin"] == "a sum of 3 updates"
    assert [part["id"] for part in result["merged"]] == [update.id for update in updates]
    assert written.info["merged"] == result["merged"]
    code, out, _ = emendo("merge", "a", "b", "--out", "two")
    assert code == 0
    assert "still writes at its own keys" in out
    assert f"{updates[1].id[:12]}…" in out


def test_fold(emendo: Command, updates: list[ModelUpdate], tmp_path: Path) -> None:
    result = document(emendo("fold", "a", "b", "c", "--out", "folded", "--json"))
    folded = fold(updates)
    assert ModelUpdate.load(tmp_path / "folded").id == folded.update.id
    assert result["folded"]["tolerance"] == 1e-6
    assert result["folded"]["error"] == folded.error <= 1e-6
    assert result["folded"]["sizes"] == vars(folded.sizes)
    assert result["update"]["origin"] == "a sum of 3 updates, folded"
    small = document(emendo("fold", "folded", "--max-rank", "2", "--drop-keys", "--out", "small", "--json"))
    assert small["folded"]["tolerance"] is None, "the rank alone decides"
    assert [row["rank"] for row in small["folded"]["layers"]] == [2, 2]
    assert small["folded"]["error"] > 1e-6
    assert ModelUpdate.load(tmp_path / "small").layers[0].keys is None
    code, out, _ = emendo("fold", "a", "b", "c", "--out", "again", "--tolerance", "1e-3")
    assert code == 0
    assert "Past break-even, where the weights themselves are smaller: layers 0, 2" in out
    assert "KiB before with keys" in out


def test_scale(emendo: Command, updates: list[ModelUpdate], tmp_path: Path) -> None:
    result = document(emendo("scale", "a", "--factor", "-0.5", "--out", "half", "--json"))
    assert ModelUpdate.load(tmp_path / "half").id == scale(updates[0], -0.5).id
    assert result["scaled"] == {"factor": -0.5, "from": updates[0].id}
    assert result["update"]["origin"] == "method test, scaled"


@pytest.mark.parametrize(
    "arguments", [("merge", "a", "b"), ("fold", "a", "b"), ("scale", "a", "--factor", "2")], ids=lambda a: a[0]
)
def test_a_file_that_is_there_is_left_alone_unless_told_otherwise(
    emendo: Command, updates: list[ModelUpdate], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "kept").write_text("mine")
    code, out, err = emendo(*arguments, "--out", "kept")
    assert (code, out) == (2, "")
    assert "there is a file at 'kept' already" in err
    assert "--force" in err
    assert (tmp_path / "kept").read_text() == "mine"
    code, _, err = emendo(*arguments, "--out", "a", "--force")
    assert (code, err) == (0, "")
    assert ModelUpdate.load(tmp_path / "a").id != updates[0].id, "the input may be the file that is replaced"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "nothing"), "no file at 'nothing'"),
        (("show", "damaged"), "damaged"),
        (("show", "."), "the folder '.' holds no update.safetensors"),
        (("merge", "a", "c", "--out", "new"), "give those too"),
        (("merge", "a", "a", "--out", "new"), "hold the same update"),
        (("merge", "a", "other", "--out", "new"), "only updates of one base"),
        (("merge", "a", "clash", "--out", "new"), "contradicting: '0-0 is'"),
        (("merge", "a", "b", "--out", "."), "it is a folder"),
        (("merge", "a", "b", "--out", "a/new"), "is a file, expected a folder"),
        (("fold", "a", "b", "--out", "new", "--tolerance", "-1"), "expected at least 0"),
        (("fold", "a", "b", "c", "--out", "new", "--tolerance", "1e-3", "--max-rank", "1"), "Allow a higher rank"),
        (("scale", "a", "--factor", "nan", "--out", "new"), "expected a finite number"),
        (("scale", "a", "--out", "new"), "--factor"),
    ],
)
def test_refusals_name_the_reason_and_write_nothing(
    emendo: Command, updates: list[ModelUpdate], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "damaged").write_bytes((tmp_path / "a").read_bytes()[:-3])
    replace(updates[0], base={**updates[0].base, "weights_sha256": "ee" * 32}).save(tmp_path / "other")
    request = {"id": "", "prompt": "{} is", "subject": "0-0", "target": "something else"}
    clash = made(world((1,), (0, 2), seed=9), [0], torch.float32)[0]
    replace(clash, info={"requests": [request]}).save(tmp_path / "clash")
    code, out, err = emendo(*arguments)
    assert code == 2
    assert out == ""
    assert words in " ".join(err.split())
    assert not (tmp_path / "new").exists()
    code, out, _ = emendo(*arguments, "--json")
    assert json.loads(out)["error"]["exit_code"] == code == 2


def test_a_record_of_junk_is_shown_without_a_traceback(
    emendo: Command, updates: list[ModelUpdate], tmp_path: Path
) -> None:
    for number, info in enumerate(({"requests": 7, "method": 7, "merged": 7}, {"requests": [7], "method": None}, {})):
        replace(updates[0], info=info).save(tmp_path / str(number))
        assert document(emendo("show", str(number), "--json"))["requests"] == []
        assert emendo("show", str(number))[0] == 0
