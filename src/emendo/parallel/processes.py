"""Several processes of this machine, each with a model of its own.

Each process has a pipe of its own, so that one that is killed can hold nothing that another one waits for. Its unit
goes to a new process. Children end with the command, however that ends: on Ctrl-C they are told to, and one whose
parent is gone ends itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from emendo.arguments import Count, checked
from emendo.errors import EmendoWarning, WorkerError
from emendo.parallel.board import Board
from emendo.parallel.crew import LOSSES, Crew
from emendo.parallel.recipe import WorldRecipe
from emendo.parallel.relay import Relay, done_or_failed, packed, relayed_notes, unpacked
from emendo.parallel.units import Finished, Unit, check_result

_PATIENCE = 20.0
"""Seconds that a process has to end by itself, before it is killed."""


class Processes(Crew):
    """So many processes, kept until `close` or the end of the context, so that a model is loaded once in each.

    Args:
        count: How many.
        losses: Workers that may be lost, one after another, on one unit or before their model is loaded.
    """

    kind = "workers"

    @checked
    def __init__(self, count: Count, *, losses: Count = LOSSES) -> None:
        self.count, self.losses = count, losses
        self._recipe: WorldRecipe | None = None
        self._crew: list[_Worker] = []

    @property
    def size(self) -> int:
        """How many processes there are at most."""
        return self.count

    def hire(self, recipe: WorldRecipe) -> None:
        """See `Crew.hire`; a process is started when there is a unit for it."""
        if recipe != self._recipe:
            self.close()
            self._recipe = recipe
            _tell_of_threads(self.count, recipe)

    def close(self) -> None:
        """End the processes: each is told to, and killed if it does not."""
        crew, self._crew, self._recipe = self._crew, [], None
        for worker in crew:
            worker.process.terminate()
        end = time.monotonic() + _PATIENCE
        for worker in crew:
            worker.process.join(max(0.0, end - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes that there are now."""
        return [worker.process.pid for worker in self._crew if worker.process.pid is not None]

    def work(self, left: deque[Unit], folder: Path, board: Board) -> Iterator[Finished]:
        """See `Crew.work`."""
        work = _Work(left, board, folder, self.losses)
        while work.left or any(worker.unit is not None for worker in self._crew):
            self._fill(work)
            talking = {worker.pipe: worker for worker in self._crew}
            for pipe in wait(list(talking), timeout=1.0):
                worker = talking[pipe]  # type: ignore[index]
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    self._crew.remove(worker)
                    work.lost(worker)
                    continue
                if (finished := work.heard(worker, message)) is not None:
                    self._fill(work)
                    yield finished

    def _fill(self, work: _Work) -> None:
        """Workers for what is left, and work for those who have none."""
        assert self._recipe is not None  # hired
        numbers = {worker.number for worker in self._crew}
        busy = sum(worker.unit is not None for worker in self._crew)
        for number in range(self.count):
            if number not in numbers and len(self._crew) < busy + len(work.left):
                self._crew.append(_Worker(number, self._recipe))
        for worker in self._crew:
            if worker.ready and worker.unit is None and work.left:
                worker.give(work.left.popleft(), work.folder)


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, number: int, recipe: WorldRecipe) -> None:
        self.number = number
        self.unit: Unit | None = None
        self.ready = False
        context = multiprocessing.get_context("spawn")  # a forked torch has locks of threads that are not there
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, recipe, number), name=f"emendo worker {number}", daemon=True
        )
        with _interrupts_blocked():
            self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def give(self, unit: Unit, folder: Path) -> None:
        """Send a unit; a process that is gone is found when it is listened to."""
        self.unit = unit
        with suppress(OSError):
            self.pipe.send((unit, folder))


class _Work:
    """Units on their way, and who was lost on them."""

    def __init__(self, left: deque[Unit], board: Board, folder: Path, losses: int) -> None:
        self.left, self.board, self.folder, self.losses = left, board, folder, losses
        self._lost: dict[str, int] = {}

    def heard(self, worker: _Worker, message: tuple[str, Any]) -> Finished | None:
        """Take what a worker says; a finished unit is given back.

        Raises:
            EmendoError: What its unit raised, or why it refuses to work.
        """
        kind, content = message
        if kind == "failed":
            raise unpacked(content)
        if kind == "note":
            warnings.warn(content, EmendoWarning, stacklevel=2)
        elif kind == "ready":
            worker.ready = True
            self._lost.pop("", None)
        elif worker.unit is not None:
            name, unit = worker.unit.id, worker.unit
            if kind == "steps":
                if self.board.advance(name, content):
                    self._lost.pop(name, None)
            elif kind == "finished":
                worker.unit = None
                check_result(unit, self.folder, f"process {worker.process.pid}")
                self.board.end(name)
                return Finished(name, f"process {worker.process.pid}", content)
        return None

    def lost(self, worker: _Worker) -> None:
        """A process is gone; its unit is the next one.

        Raises:
            WorkerError: That has happened too often.
        """
        worker.process.join()
        worker.pipe.close()
        name = "" if worker.unit is None else worker.unit.id
        if worker.unit is not None:
            self.left.appendleft(worker.unit)
        elif worker.ready:  # it had nothing to do
            return
        self._lost[name] = self._lost.get(name, 0) + 1
        if self._lost[name] >= self.losses:
            where = f"at {name!r}" if name else "while they loaded their model"
            raise WorkerError(
                f"{self._lost[name]} workers in a row ended {where}, the last with {_ending(worker.process.exitcode)}. "
                "Not enough memory for so many models is the usual reason: use fewer workers (--workers), and run the "
                "command again; what is finished stays"
            )


def serve(pipe: Connection, recipe: WorldRecipe, number: int) -> None:
    """What a process does: make its world, then one unit after another, until the pipe ends."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(BrokenPipeError), relayed_notes(lambda text: pipe.send(("note", text))):
        relay = Relay(lambda steps: pipe.send(("steps", steps)))
        try:
            world = recipe.build(number, relay)
        except Exception as error:
            pipe.send(("failed", packed(error)))
            return
        pipe.send(("ready", None))
        while True:
            try:
                unit, folder = pipe.recv()
            except EOFError:
                return
            pipe.send(done_or_failed(world, unit, folder, relay))


def _tell_of_threads(count: int, recipe: WorldRecipe) -> None:
    """Warn where workers have more threads than there are cores: they wait for each other, and find the same."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if recipe.device == "cpu" and count > 1 and count * recipe.threads > cores:
        warnings.warn(
            f"{count} workers of {recipe.threads} threads each on {cores} cores are slower than they could be; set "
            f"OMP_NUM_THREADS={max(1, cores // count)} for the command (results can then differ in their last bits)",
            EmendoWarning,
            stacklevel=4,
        )


def _leave(number: int, frame: FrameType | None) -> None:
    """End as after an error: drafts are taken away, and claims given back."""
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # at once: whoever goes on in this folder must not meet this process


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started inside never sees Ctrl-C; one that comes meanwhile reaches this process afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
