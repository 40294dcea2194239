"""Small units of work: who does them, in which order, and how errors, steps and notes come home."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import emendo.parallel.recipe as recipes
from emendo.errors import ConflictError, InputError, WorkerError
from emendo.models import EditableModel, load
from emendo.parallel import Processes, ReadyWorld, Serial, World, WorldRecipe
from emendo.parallel.board import Board
from emendo.parallel.processes import _tell_of_threads
from emendo.parallel.relay import Relay, done_or_failed, relayed_notes, unpacked
from tests.worker_cases import Counted, Note, drive


@pytest.fixture
def recipe(model: str) -> WorldRecipe:
    return WorldRecipe.of(load(model, device="cpu"))


def test_serial_workers_take_units_when_they_come_to_them(tiny_llama: EditableModel, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("there")
    asked: list[str] = []

    def units() -> Iterator[Note]:
        for name in "abc":
            asked.append(name)
            yield Note(name)

    found = Serial().map(ReadyWorld(World(tiny_llama)), units(), tmp_path)
    assert next(found).worker == ""
    assert asked == ["a"]
    assert [finished.unit for finished in found] == ["b", "c"]
    assert (tmp_path / "a").read_text() == "there"


def test_a_world_is_built_from_a_recipe(recipe: WorldRecipe, tmp_path: Path) -> None:
    (done,) = Serial().map(recipe, [Note("a")], tmp_path)
    assert done.unit == "a"
    assert (tmp_path / "a").read_text().endswith(recipe.identity["weights_sha256"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, identity={**r.identity, "weights_sha256": "0" * 64}), "got another model.*weights"),
        (lambda r: replace(r, identity={**r.identity, "tokenizer_sha256": "0" * 64}), "got another model.*tokenizer"),
        (lambda r: replace(r, code={**r.code, "emendo": "0.0.9"}), "emendo: found .*expected '0.0.9'.*same versions"),
        (lambda r: replace(r, code={**r.code, "source_sha256": "0" * 64}), "Emendo's own files"),
        (lambda r: replace(r, code={**r.code, "torch": "1.0"}), "torch: found"),
        (lambda r: replace(r, code={**r.code, "instruction_set": "AVX1"}), "instruction set.*machines of one kind"),
        (lambda r: replace(r, model="/nowhere"), "by its name, and cannot load '/nowhere': no model folder"),
        (lambda r: replace(r, folder="/nowhere"), "working directory '/nowhere'"),
    ],
)
def test_another_world_is_refused(
    change: Callable[[WorldRecipe], WorldRecipe], words: str, recipe: WorldRecipe, tmp_path: Path
) -> None:
    with pytest.raises(WorkerError, match=words):
        list(Serial().map(change(recipe), [Note("a")], tmp_path))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("there", "expected"), [(3, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]), (1, ["cuda"] * 4)])
def test_workers_of_a_machine_share_its_devices(
    there: int, expected: list[str], recipe: WorldRecipe, tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(recipes, "code_identity", lambda device: recipe.code)
    monkeypatch.setattr(recipes, "load", lambda name, *, device, dtype: asked.append(device) or tiny_llama)
    for number in range(4):
        replace(recipe, device="cuda", identity={}).build(number)
    assert asked == expected


@pytest.mark.crash
def test_units_of_processes_die_in_words(recipe: WorldRecipe, tmp_path: Path) -> None:
    with Processes(1, losses=2) as workers:
        progress = Counted()
        found = list(workers.map(recipe, [Note("a"), Note("b", "once"), Note("c")], tmp_path, progress=progress))
        assert [finished.unit for finished in found] == ["a", "b", "c"]
        assert progress.stages == {"units (1 workers)": 6}
        (pid,) = workers.pids
        assert [f.worker for f in workers.map(recipe, [Note("c"), Note("d")], tmp_path)] == ["", f"process {pid}"]
        with pytest.raises(WorkerError, match=r"2 workers in a row ended at 'g', the last with SIGKILL.*--workers"):
            list(workers.map(recipe, [Note("g", "kill")], tmp_path))
        assert workers.pids == []
        other = replace(recipe, identity={**recipe.identity, "weights_sha256": "0" * 64})
        with pytest.raises(WorkerError, match="got another model"):
            list(workers.map(other, [Note("e")], tmp_path))
        assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("count", "threads", "warned"), [(4, 8, True), (4, 2, False), (1, 64, False)])
def test_more_threads_than_cores_are_told(
    count: int, threads: int, warned: bool, recipe: WorldRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _tell_of_threads(count, replace(recipe, threads=threads))
    assert ["OMP_NUM_THREADS=2" in str(one.message) for one in told] == [True] * warned


@pytest.mark.parametrize(
    ("deed", "error", "words"),
    [
        ("refuse", InputError, "^nobody can do this$"),
        ("conflict", ConflictError, "^two facts\\n  the first\\n  the second$"),
        ("crash", WorkerError, r"a worker failed with ZeroDivisionError: a slip\nTraceback(.|\n)*worker_cases"),
    ],
)
def test_errors_of_units_travel(
    deed: str, error: type[Exception], words: str, tiny_llama: EditableModel, tmp_path: Path
) -> None:
    told: list[int] = []
    kind, content = done_or_failed(World(tiny_llama), Note("a", deed), tmp_path, Relay(told.append))
    assert kind == "failed"
    with pytest.raises(error, match=words) as raised:
        raise unpacked(content)
    assert getattr(raised.value, "problems", ()) == (("the first", "the second") if deed == "conflict" else ())
    assert list((tmp_path / ".claims").iterdir()) == []


def test_steps_and_notes_travel(tiny_llama: EditableModel, tmp_path: Path) -> None:
    told: list[int] = []
    notes: list[str] = []
    relay = Relay(told.append)
    with relayed_notes(notes.append):
        kind, _ = done_or_failed(World(tiny_llama, relay), Note("a", "warn"), tmp_path, relay)
    assert kind == "finished"
    assert (told, notes) == ([1], ["look here"])
    progress = Counted()
    with Board([Note("a"), Note("b")], "all", progress) as board:
        assert board.advance("a", 1)
        assert not board.advance("a", 1)  # a worker that begins again tells the same once more
        assert board.advance("a", 9)
        board.end("a")
    assert progress.stages == {"all": 2}


@pytest.mark.crash
@pytest.mark.parametrize(
    ("kind", "number"), [("processes", signal.SIGINT), ("processes", signal.SIGKILL), ("ray", signal.SIGINT)]
)
def test_children_end_with_their_parent(kind: str, number: signal.Signals, recipe: WorldRecipe, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=drive, args=(recipe, str(tmp_path), kind))
    process.start()
    begun = [tmp_path / "a-begun"]
    while not all(path.exists() and path.read_text() for path in begun):
        assert process.is_alive()
        time.sleep(0.05)
    children = [int(path.read_text()) for path in begun]
    assert process.pid is not None
    # A terminal sends Ctrl-C to all of them, but for the processes of Ray, which have a group of their own.
    for pid in [process.pid, *children] if (kind, number) == ("processes", signal.SIGINT) else [process.pid]:
        os.kill(pid, number)
    process.join(60)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/exe").exists() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".claims") == ["a-begun"]
    if (kind, number) == ("processes", signal.SIGINT):  # given back, not only left
        assert list((tmp_path / ".claims").iterdir()) == []
