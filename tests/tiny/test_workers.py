"""The same experiment by one process and by several: the same numbers, whatever happens to the workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import emendo.parallel.recipe as recipes
from emendo.editing.session import EditSession
from emendo.editing.value_cache import ValueCache
from emendo.errors import ConflictError, InputError, WorkerError
from emendo.experiments import Cell, Experiment, ExperimentConfig, comparable
from emendo.models import EditableModel, load
from emendo.parallel import Claims, Joined, Processes, ReadyWorld, Serial, Workers, World, WorldRecipe
from emendo.parallel.board import Board
from emendo.parallel.processes import _tell_of_threads
from emendo.parallel.ray_workers import RayWorkers
from emendo.parallel.relay import Relay, done_or_failed, relayed_notes, unpacked
from emendo.progress import Silent
from emendo.requests import EditRequest
from emendo.statistics import MomentStore, read_moment
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.experiment_cases import CITIES, NAMES, QUICK, grid, summaries, write_records
from tests.tiny.conftest import Command
from tests.worker_cases import Note, drive


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_records(tmp_path_factory.mktemp("data") / "records.jsonl")


@pytest.fixture(scope="module")
def config(model: str, data: str) -> dict[str, Any]:
    return grid(model, data)


@pytest.fixture(scope="module")
def cells(config: dict[str, Any]) -> list[Cell]:
    return ExperimentConfig.model_validate(config).expand()


class Counted(Silent):
    """Adds up what a display would show."""

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}
        self._stage = ""

    def start(self, stage: str, total: int | None = None) -> None:
        self._stage = stage

    def advance(self, n: int = 1) -> None:
        self.stages[self._stage] = self.stages.get(self._stage, 0) + n


def run(
    config: dict[str, Any], folder: Path, store: Path, workers: Workers | None, progress: Counted | None = None
) -> list[dict[str, Any]]:
    read = ExperimentConfig.model_validate(config)
    experiment = Experiment(
        read.name,
        read.model_dump(mode="json"),
        read.expand(),
        folder,
        lambda name: load(name, device="cpu"),
        store=MomentStore(store),
        progress=progress,
    )
    return list(experiment.run(workers))


def contents(folder: Path, cells: list[Cell]) -> list[Any]:
    """Summaries and record lines of all cells, without timing."""
    found = []
    for one, summary in zip(cells, summaries(folder, cells), strict=True):
        lines = (folder / "cells" / one.id / "records.jsonl").read_text().splitlines()
        summary.pop("commit")  # somebody may commit while the test runs
        found.append((comparable(summary), [json.loads(line) for line in lines]))
    return found


@pytest.fixture(scope="module")
def serial(config: dict[str, Any], cells: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What one process finds, and its store of second moments."""
    folder = tmp_path_factory.mktemp("serial")
    run(config, folder / "out", folder / "store", None)
    return contents(folder / "out", cells), folder / "store"


@contextmanager
def killing(pids: Callable[[], list[int]], kills: int, seed: int) -> Iterator[list[int]]:
    """SIGKILL workers at random times, until so many are dead or the context ends."""
    chance, dead, over = random.Random(seed), [], threading.Event()

    def kill() -> None:
        while len(dead) < kills and not over.wait(chance.uniform(0.5, 3.0)):
            if there := [pid for pid in pids() if pid not in dead]:
                os.kill(victim := chance.choice(there), signal.SIGKILL)
                dead.append(victim)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield dead
    finally:
        over.set()
        thread.join()


def at_work(folder: Path) -> list[int]:
    """Numbers of the processes that have a claim in a folder."""
    return [owner["pid"] for owner in Claims(folder).owners()]


# ---- processes -----------------------------------------------------------------------------------------------


@pytest.mark.crash
def test_two_processes_find_what_one_finds(
    config: dict[str, Any], cells: list[Cell], serial: tuple[Any, Path], tmp_path: Path
) -> None:
    progress = Counted()
    with Processes(2) as workers:
        found = run(config, tmp_path / "out", serial[1], workers, progress)
        pids = workers.pids
    assert sorted(summary["cell"]["id"] for summary in found) == sorted(cell.id for cell in cells)
    assert contents(tmp_path / "out", cells) == serial[0]
    assert progress.stages["edits (2 workers)"] == sum(cell.n for cell in cells)
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not (tmp_path / "out" / ".claims").exists()


@pytest.mark.crash
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_processes_change_nothing(
    kills: int, config: dict[str, Any], cells: list[Cell], serial: tuple[Any, Path], tmp_path: Path
) -> None:
    done = 0
    while done < kills:  # an experiment may be over before all have happened
        folder = tmp_path / f"out-{done}"
        with Processes(2, losses=100) as workers, killing(lambda at=folder: at_work(at), kills - done, done) as dead:
            run(config, folder, serial[1], workers)
        assert contents(folder, cells) == serial[0]
        done += max(1, len(dead))


# ---- Ray -----------------------------------------------------------------------------------------------------


@pytest.mark.crash
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_two_workers_of_ray_find_what_one_process_finds(
    kills: int, config: dict[str, Any], cells: list[Cell], serial: tuple[Any, Path], tmp_path: Path
) -> None:
    done, progress = 0, Counted()
    with RayWorkers("local", 2, losses=100) as workers:
        while done < kills:
            folder = tmp_path / f"out-{done}"
            with killing(lambda at=folder: at_work(at), kills - done, done) as dead:
                run(config, folder, serial[1], workers, progress)
            assert contents(folder, cells) == serial[0]
            done += max(1, len(dead))
        recipe = WorldRecipe.of(load(config["models"][0], device="cpu"))
        other = replace(recipe, code={**recipe.code, "emendo": "0.0.9"})
        with pytest.raises(WorkerError, match="emendo: found"):
            list(workers.map(other, [Note("a")], tmp_path))
    edits = sum(cell.n for cell in cells)
    assert progress.stages["edits (2 workers of Ray)"] % edits == 0
    assert not (folder / ".claims").exists()


@pytest.mark.crash
def test_a_cluster_that_is_not_there_is_told(recipe: WorldRecipe, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"cannot reach Ray at 'auto'.*ray start --head"):
        list(RayWorkers("auto").map(recipe, [Note("a")], tmp_path))


# ---- small units ---------------------------------------------------------------------------------------------


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


# ---- joined processes ----------------------------------------------------------------------------------------


@pytest.mark.crash
def test_two_joined_commands_finish_a_grid_together(
    config: dict[str, Any], cells: list[Cell], serial: tuple[Any, Path], tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "emendo", "experiment", "grid.yaml", "--out", "out", "--join", "--json"]
    environment = {**os.environ, "EMENDO_HOME": str(serial[1].parent / "home")}
    joined = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in joined]
    assert [process.returncode for process in joined] == [0, 0], told
    tables = [json.loads(out)["cells"] for out, _ in told]
    assert tables[0] == tables[1]
    assert [summary["cell"]["id"] for summary in tables[0]] == [cell.id for cell in cells]
    assert contents(tmp_path / "out", cells) == serial[0]
    assert not (tmp_path / "out" / ".claims").exists()


def test_a_joined_process_takes_what_nobody_has(tiny_llama: EditableModel, tmp_path: Path) -> None:
    held = Claims(tmp_path).take("b")
    assert held is not None

    def finish() -> None:
        (tmp_path / "b").write_text("by another one")
        held.release()

    world = ReadyWorld(World(tiny_llama))
    found = Joined(stale=0.4).map(world, [Note("a"), Note("b"), Note("c")], tmp_path)
    assert [next(found).unit for _ in range(2)] == ["a", "c"]
    threading.Timer(0.3, finish).start()
    assert [(finished.unit, finished.worker) for finished in found] == [("b", "")]
    assert (tmp_path / "b").read_text() == "by another one"


def test_another_version_does_not_join(tiny_llama: EditableModel, tmp_path: Path) -> None:
    world = ReadyWorld(World(tiny_llama))
    (_,) = Joined().map(world, [Note("a")], tmp_path)
    other = Claims(tmp_path).take("member-elsewhere-1")
    assert other is not None
    other.say({"emendo": "0.0.9"})
    with pytest.raises(WorkerError, match="at work in this folder with something else: emendo: found"):
        list(Joined().map(world, [Note("b")], tmp_path))
    assert not (tmp_path / "b").exists()


def test_one_command_alone_and_joined_ones_do_not_mix(config: dict[str, Any], tmp_path: Path) -> None:
    alone = {**config, "methods": [], "cells": config["cells"][:1]}
    read = ExperimentConfig.model_validate(alone)
    folder = tmp_path / "out"
    joined = Experiment("small", {}, read.expand(), folder, lambda name: load(name, device="cpu"))
    running = joined.run(Joined())
    next(running)
    with pytest.raises(InputError, match=r"another process is at work.*--join"):
        run(alone, folder, tmp_path / "store", None)
    running.close()


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "2", "--join"], "--workers and --join exclude each other"),
        (["--workers", "2", "--ray", "local"], "--workers and --ray exclude each other"),
        (["--workers", "0"], "expected at least 1"),
    ],
)
@pytest.mark.usefixtures("home")
def test_options_that_exclude_each_other(options: list[str], words: str, emendo: Command) -> None:
    code, _, told = emendo("experiment", "grid.yaml", *options)
    assert code == 2
    assert words in told


# ---- target searches and second moments ----------------------------------------------------------------------


def plan_by(
    lm: EditableModel, folder: Path, workers: Workers | None, progress: Counted | None = None
) -> tuple[str, ValueCache]:
    """An edit whose searches and second moments workers make; its update's id."""
    requests = [
        EditRequest("{} was born in the city of", name, CITIES[number % 4]) for number, name in enumerate(NAMES[:6])
    ]
    memory = ValueCache(requests, folder / "targets", workers=workers)
    store = MomentStore(folder / "moments")
    session = EditSession(lm, store=store, targets=memory, progress=progress, workers=workers)
    settings = QUICK | {"target.batch_size": 2, "moments.multiple": 90}
    return session.plan(requests, "memit", layers=[1, 2], settings=settings).update.id, memory


@pytest.mark.crash
def test_workers_search_and_count_what_one_process_does(model: str, tmp_path: Path) -> None:
    lm = load(model, device="cpu")
    expected, alone = plan_by(lm, tmp_path / "alone", None)
    progress = Counted()
    with Processes(2) as workers:
        found, memory = plan_by(lm, tmp_path / "together", workers, progress)
    assert found == expected
    assert (memory.made, memory.shared) == (alone.made, alone.shared) == (6, 0)
    assert progress.stages["targets (2 workers)"] == 6 * int(QUICK["target.steps"])
    assert progress.stages["second moments (2 workers)"] > 0
    files = [sorted(path.name for path in (tmp_path / name).rglob("*.*")) for name in ("alone", "together")]
    assert files[0] == files[1]


def test_workers_without_a_folder_cannot_hand_over_searches() -> None:
    with pytest.raises(InputError, match="expected a folder"):
        ValueCache([], workers=Joined())


def test_a_joined_worker_searches_what_nobody_searches(tiny_llama: EditableModel, tmp_path: Path) -> None:
    expected, _ = plan_by(tiny_llama, tmp_path / "alone", None)
    found, memory = plan_by(build_tiny("llama"), tmp_path / "joined", Joined(member=False))
    assert found == expected
    assert (memory.made, memory.shared) == (6, 0)
    (tmp_path / "half" / "targets").mkdir(parents=True)
    other = min((tmp_path / "alone" / "targets").iterdir())
    held = Claims(tmp_path / "half" / "targets").take(other.stem)  # another worker is at this one
    assert held is not None

    def finish() -> None:
        (tmp_path / "half" / "targets" / other.name).write_bytes(other.read_bytes())
        held.release()

    threading.Timer(2.0, finish).start()
    found, memory = plan_by(build_tiny("llama"), tmp_path / "half", Joined(member=False))
    assert found == expected
    assert (memory.made, memory.shared) == (4, 2)


@pytest.mark.crash
def test_edit_and_moments_take_workers(emendo: Command, model: str, data: str, home: Path, tmp_path: Path) -> None:
    facts = ["--model", model, "--requests", data, "--method", "memit", "--layers", "1,2", "--no-judge", "--seed", "7"]
    quick = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    code, _, told = emendo("edit", *facts, *quick, "--out", "together", "--workers", "2")
    assert code == 0, told
    for kept in ("targets", "moments"):
        shutil.rmtree(home / kept)
    code, _, told = emendo("edit", *facts, *quick, "--out", "alone")
    assert code == 0, told
    ids = [ModelUpdate.load(tmp_path / name / "update.safetensors").id for name in ("together", "alone")]
    assert ids[0] == ids[1]
    collect = ["moments", "collect", "--model", model, "--layers", "3", "--tokens", "4000", "--json"]
    code, out, told = emendo(*collect, "--workers", "1")
    assert code == 0, told
    path = Path(json.loads(out)["moments"][0]["path"])
    found = read_moment(path).moment
    path.unlink()
    assert emendo(*collect)[0] == 0
    assert torch.equal(read_moment(path).moment.total, found.total)
