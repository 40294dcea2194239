"""A killed experiment that is taken up gives what an undisturbed one gives."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as writer

import emendo.experiments.files as files
import emendo.experiments.folder as folder
import emendo.experiments.ground as ground
from emendo.editing.session import EditSession
from emendo.experiments import Cell, Experiment, ExperimentConfig, Measures, comparable
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.experiment_cases import cell, grid, run_file, summaries, write_records

pytestmark = pytest.mark.crash

# ---- SIGKILL from outside ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that begin with everything imported, forked from one that has computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.experiment_cases"])
    return context


def run_in_process(processes: Any, arguments: tuple[str, str, str], after: float | None) -> int | None:
    """Run an experiment in a process of its own and kill it after so many seconds; its exit code."""
    process = processes.Process(target=run_file, args=arguments)
    process.start()
    if after is not None:
        process.join(after)
        process.kill()
    process.join()
    return process.exitcode


def contents(folder: Path, cells: list[Cell]) -> list[Any]:
    """Summaries and record lines of all cells, without timing."""
    found = []
    for one, summary in zip(cells, summaries(folder, cells), strict=True):
        lines = (folder / "cells" / one.id / "records.jsonl").read_text().splitlines()
        summary.pop("commit")  # somebody may commit while the test runs
        found.append((comparable(summary), [json.loads(line) for line in lines]))
    return found


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_random_kills_change_nothing(kills: int, processes: Any, model: str, tmp_path: Path) -> None:
    config = grid(model, write_records(tmp_path / "records.jsonl"))
    cells = ExperimentConfig.model_validate(config).expand()
    (tmp_path / "grid.json").write_text(json.dumps(config))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = (str(tmp_path / "grid.json"), str(whole), str(tmp_path / "store"))
    assert run_in_process(processes, arguments, None) == 0
    begin = time.perf_counter()  # with moments on the disk, as the killed runs have them
    assert run_in_process(processes, (arguments[0], str(tmp_path / "again"), arguments[2]), None) == 0
    took, chance = time.perf_counter() - begin, random.Random(kills)
    expected, done = contents(whole, cells), 0
    while done < kills:
        killed = run_in_process(processes, (arguments[0], str(broken), arguments[2]), chance.uniform(0.1, 0.7) * took)
        if killed == 0:  # it was done before the kill came: look at it, and begin another
            assert contents(broken, cells) == expected
            broken = tmp_path / f"broken-{done}"
            continue
        assert killed == -signal.SIGKILL
        done += 1
    assert run_in_process(processes, (arguments[0], str(broken), arguments[2]), None) == 0
    assert contents(broken, cells) == expected


# ---- failures at every single write --------------------------------------------------------------------------


class KilledError(BaseException):
    """Nothing in Emendo catches it."""


class Kill:
    """Counts writes, and ends one of them before, in the middle of, or after its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.when = 0, -1, "before"
        writers = ((files, "append_lines"), (folder, "write_json"), (ground, "write_json"), (writer, "save_file"))
        for module, name in writers:
            monkeypatch.setattr(module, name, self._wrapped(name, getattr(module, name)))
        # The folder module has the function under its own name.
        monkeypatch.setattr("emendo.experiments.folder.append_lines", files.append_lines)

    def arm(self, at: int, when: str) -> None:
        self.count, self.at, self.when = 0, at, when

    def _wrapped(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def write(*arguments: Any) -> None:
            self.count += 1
            if self.count != self.at:
                original(*arguments)
                return
            if self.when == "torn" and name == "append_lines":
                path, rows = arguments
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as stream:
                    stream.write((json.dumps(rows[0]) + "\n" + json.dumps(rows[-1]))[:-4])
            elif self.when == "after":
                original(*arguments)
            raise KilledError

        return write


CASES: dict[str, dict[str, Any]] = {
    "batch": {"method": "emmet", "n": 3},
    "sequential-batched": {"method": "memit-history", "mode": "sequential-batched", "n": 3},
}


DEFAULT = ("sequential-batched", "torn")
EVERY = list(itertools.product(CASES, ("before", "torn", "after")))


@pytest.mark.parametrize(
    ("case", "when"),
    [DEFAULT, *(pytest.param(*which, marks=pytest.mark.slow) for which in EVERY if which != DEFAULT)],
)
def test_a_kill_at_every_write_changes_nothing(
    case: str, when: str, store: MomentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = Measures(perplexity=False, samples=0)
    one = cell(write_records(tmp_path / "records.jsonl"), measures=measures, **CASES[case])
    kill, lm = Kill(monkeypatch), build_tiny("llama")
    plan, plans = EditSession.plan, []
    monkeypatch.setattr(EditSession, "plan", lambda *args, **kwargs: plans.append(1) or plan(*args, **kwargs))

    def run(folder: Path) -> dict[str, Any]:
        (found,) = Experiment("kill", {}, [one], folder, lambda _: lm, store=store).run()
        return comparable(found)

    run(tmp_path / "first")  # which collects the second moments
    kill.arm(-1, when)
    expected = run(tmp_path / "whole")
    writes = kill.count
    assert writes >= 8
    for at in range(1, writes + 1):
        folder = tmp_path / f"{when}-{at}"
        kill.arm(at, when)
        plans.clear()
        with pytest.raises(KilledError):
            run(folder)
        assert not lm.holds_edits
        kill.arm(-1, when)
        assert run(folder) == expected
        assert len(plans) in (2, 3), "of two batches, one at most is planned again"
