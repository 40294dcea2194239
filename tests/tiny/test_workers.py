"""The same experiment by one process and by several: the same numbers, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.editing.value_cache import ValueCache
from emendo.errors import InputError, WorkerError
from emendo.experiments import Cell, Experiment, ExperimentConfig, comparable
from emendo.models import EditableModel, load
from emendo.parallel import Claims, Joined, Processes, ReadyWorld, Workers, World, WorldRecipe
from emendo.parallel.ray_workers import RayWorkers
from emendo.requests import EditRequest
from emendo.statistics import MomentStore, read_moment
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.experiment_cases import CITIES, NAMES, QUICK, grid, summaries, write_records
from tests.tiny.conftest import Command
from tests.worker_cases import Counted, Note


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_records(tmp_path_factory.mktemp("data") / "records.jsonl")


@pytest.fixture(scope="module")
def config(model: str, data: str) -> dict[str, Any]:
    return grid(model, data)


@pytest.fixture(scope="module")
def cells(config: dict[str, Any]) -> list[Cell]:
    return ExperimentConfig.model_validate(config).expand()


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


@pytest.fixture
def recipe(model: str) -> WorldRecipe:
    return WorldRecipe.of(load(model, device="cpu"))


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
    assert (memory.searched, memory.shared) == (alone.searched, alone.shared) == (6, 0)
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
    assert (memory.searched, memory.shared) == (6, 0)
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
    assert (memory.searched, memory.shared) == (4, 2)


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
