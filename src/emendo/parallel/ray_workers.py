"""Workers of Ray: a cluster in hand, or this machine.

Ray places the workers, starts one again that is lost, and gives it its unit again. Files go through the folder, which
all machines see under one path; what Ray carries is small: units, numbers of steps, errors.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from emendo.arguments import Count, checked
from emendo.errors import EmendoWarning, InputError, WorkerError
from emendo.io.extras import pip_install
from emendo.io.home import emendo_home
from emendo.parallel.board import Board
from emendo.parallel.crew import LOSSES, Crew
from emendo.parallel.recipe import WorldRecipe
from emendo.parallel.relay import Relay, done_or_failed, packed, relayed_notes, unpacked
from emendo.parallel.units import Finished, Unit, World, check_result

_CARRIED = ("ATEN_CPU_CAPABILITY", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONPATH")
"""Environment variables that workers have as the command has them, beside those that begin with EMENDO_."""

_VISIBLE = 90.0
"""Seconds that a file of another machine may take to be seen here; network file systems cache for up to 60."""


class RayWorkers(Crew):
    """Workers on a cluster of Ray, one for each accelerator or for as many processor cores as a model has threads.

    Args:
        address: ``"local"`` starts Ray on this machine, ``"auto"`` finds the one that runs here, else the address of a
            cluster, as ``ray.init`` takes it.
        count: How many; None: as many as the cluster has room for.
        losses: How often one unit may be begun again because its worker was lost.

    Raises:
        InputError: The extra ``ray`` is not installed.
    """

    kind = "workers of Ray"

    @checked
    def __init__(self, address: str = "local", count: Count | None = None, *, losses: Count = LOSSES) -> None:
        self.address, self.count, self.losses = address, count, losses
        self._ray = _library()
        self._started = False
        self._recipe: WorldRecipe | None = None
        self._crew: list[Any] = []
        self._told: Any = None

    @property
    def size(self) -> int:
        """How many workers the cluster has room for, or were asked for."""
        return len(self._crew)

    def hire(self, recipe: WorldRecipe) -> None:
        """See `Crew.hire`."""
        self._connect()
        if recipe != self._recipe:
            self._hire(recipe)

    def close(self) -> None:
        """End the workers, and Ray where it was started for them."""
        crew, self._crew, self._recipe = self._crew, [], None
        for actor in crew:
            with suppress(Exception):  # Ray itself may be gone
                self._ray.kill(actor)
        if self._told is not None:
            with suppress(Exception):
                self._told.shutdown(force=True)
            self._told = None
        if self._started:
            self._ray.shutdown()
            self._started = False

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        carried = {name: value for name, value in os.environ.items() if name in _CARRIED or name.startswith("EMENDO_")}
        carried["EMENDO_HOME"] = str(emendo_home().absolute())
        options: dict[str, Any] = {"runtime_env": {"env_vars": carried}, "log_to_driver": False}
        if self.address == "local":
            options |= {"include_dashboard": False}
        try:
            self._ray.init(address=self.address, logging_level="error", **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WorkerError(
                f"cannot reach Ray at {self.address!r}: {str(error).splitlines()[0]}. Start it (ray start --head), or "
                "give 'local' or the address of a cluster (--ray)"
            ) from error
        self._started = True

    def _hire(self, recipe: WorldRecipe) -> None:
        """Workers for a recipe, as many as there is room for; those of another one go."""
        for actor in self._crew:
            self._ray.kill(actor)
        room = self._ray.cluster_resources()
        wanted = {"CPU": float(recipe.threads)} | ({"GPU": 1.0} if recipe.device == "cuda" else {})
        fitting = min(int(room.get(kind, 0.0) // amount) for kind, amount in wanted.items())
        count = self.count or fitting
        if count < 1 or count > fitting:
            has = ", ".join(f"{room.get(kind, 0.0):g} {kind}" for kind in wanted)
            raise WorkerError(
                f"the cluster has {has}, and {max(count, 1)} workers need {wanted} each; use fewer threads a worker "
                "(OMP_NUM_THREADS=1), fewer workers, or a larger cluster (--ray)"
            )
        if self._told is None:
            from ray.util.queue import Queue

            self._told = Queue(actor_options={"num_cpus": 0})
        remote = self._ray.remote(_Worker).options(
            num_cpus=wanted["CPU"], num_gpus=wanted.get("GPU", 0), max_restarts=-1, max_task_retries=self.losses
        )
        self._crew = [remote.remote(recipe, self._told) for _ in range(count)]
        self._recipe = recipe

    def work(self, left: deque[Unit], folder: Path, board: Board) -> Iterator[Finished]:
        """See `Crew.work`."""
        busy: dict[Any, tuple[Any, Unit]] = {}
        idle = list(self._crew)
        while left or busy:
            while left and idle:
                actor, unit = idle.pop(), left.popleft()
                busy[actor.do.remote(unit, str(folder))] = (actor, unit)
            ready, _ = self._ray.wait(list(busy), timeout=0.5)
            self._show(board)
            for answer in ready:
                actor, unit = busy.pop(answer)
                idle.append(actor)
                kind, content, place = self._answer(answer, unit)
                if kind == "failed":
                    raise unpacked(content)
                check_result(unit, folder, place, patience=_VISIBLE)
                board.end(unit.id)
                yield Finished(unit.id, place, content)

    def _answer(self, answer: Any, unit: Unit) -> tuple[str, Any, str]:
        try:
            found: tuple[str, Any, str] = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise WorkerError(
                f"{self.losses + 1} workers of Ray were lost, one after another, at {unit.id!r}: "
                f"{str(error).splitlines()[0]}. Not enough memory is the usual reason; run the command again with "
                "fewer workers, what is finished stays"
            ) from error
        return found

    def _show(self, board: Board) -> None:
        """What workers have told meanwhile."""
        with suppress(self._ray.exceptions.RayError):
            for unit, steps, note in self._told.get_nowait_batch(self._told.qsize()):
                if note:
                    warnings.warn(note, EmendoWarning, stacklevel=2)
                else:
                    board.advance(unit, steps)


class _Worker:
    """What runs in a process of Ray; started again where it is lost, with the same arguments."""

    def __init__(self, recipe: WorldRecipe, told: Any) -> None:
        self._recipe, self._queue = recipe, told
        self._unit = ""
        self._world: World | None = None
        self._relay = Relay(lambda steps: self._tell(steps, ""))

    def do(self, unit: Unit, folder: str) -> tuple[str, Any, str]:
        """Do a unit: ("finished", seconds, where), or ("failed", the error, where)."""
        place, self._unit = f"process {os.getpid()} on {os.uname().nodename}", unit.id
        with relayed_notes(lambda text: self._tell(0, text)):
            if self._world is None:
                try:
                    self._world = self._recipe.build(progress=self._relay)
                except Exception as error:
                    return "failed", packed(error), place
            return *done_or_failed(self._world, unit, Path(folder), self._relay), place

    def _tell(self, steps: int, note: str) -> None:
        with suppress(Exception):  # a display that cannot be reached ends no work
            self._queue.put_nowait((self._unit, steps, note))


def _library() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(f"workers of Ray need the package ray: {pip_install('ray')}") from error
    return ray
