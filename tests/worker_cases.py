"""Small units of work for tests of workers, apart from them: every process of a test imports what it is sent."""

from __future__ import annotations

import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from emendo.errors import ConflictError, EmendoWarning, InputError
from emendo.parallel import Processes, World, WorldRecipe
from emendo.progress import Silent


class Counted(Silent):
    """Adds up what a display would show."""

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}
        self._stage = ""

    def start(self, stage: str, total: int | None = None) -> None:
        self._stage = stage

    def advance(self, n: int = 1) -> None:
        self.stages[self._stage] = self.stages.get(self._stage, 0) + n


@dataclass(frozen=True)
class Note:
    """A unit that writes a file; by its name it does something on the way."""

    id: str
    deed: str = ""
    title: str = "note"
    size: int = 2

    def done(self, folder: Path) -> bool:
        return (folder / self.id).exists()

    def run(self, world: World, folder: Path) -> None:
        world.progress.start(self.title)
        world.progress.advance()
        if self.deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "refuse":
            raise InputError("nobody can do this")
        if self.deed == "warn":
            warnings.warn("look here", EmendoWarning, stacklevel=2)
        if self.deed == "conflict":
            raise ConflictError("two facts", ["the first", "the second"])
        if self.deed == "crash":
            raise ZeroDivisionError("a slip")
        if self.deed == "sleep":
            (folder / f"{self.id}-begun").write_text(str(os.getpid()))
            time.sleep(60)
        if self.deed == "once" and not (folder / f"{self.id}-tried").exists():
            (folder / f"{self.id}-tried").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / self.id).write_text(f"{os.getpid()} {world.lm.weights_digest()}")


def drive(recipe: WorldRecipe, folder: str, kind: str) -> None:
    """What a command does, in a process that is killed or interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    if kind == "ray":
        from emendo.parallel.ray_workers import RayWorkers

        with RayWorkers("local", 1) as of_ray:
            list(of_ray.map(recipe, [Note("a", "sleep"), Note("b", "sleep")], Path(folder)))
    with Processes(1) as workers:
        list(workers.map(recipe, [Note("a", "sleep"), Note("b", "sleep")], Path(folder)))
