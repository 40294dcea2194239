"""What is done, who does it, and what a worker holds.

A unit is a piece of work whose result is a file, or a folder's last file, that appears whole or not at all. Whoever
does it, the file holds the same; so a unit that a killed worker has left is done again by another one. No tensor
travels between workers: units and recipes are small, and results are read from the folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from emendo.errors import WorkerError
from emendo.models import EditableModel
from emendo.parallel.claims import Claim, Claims
from emendo.progress import Progress, Silent

T = TypeVar("T")


class World:
    """A worker's model, and what its units keep between them.

    Args:
        lm: The model, without edits.
        progress: Told by units; a worker passes the stage that is called as the unit on to the command.
        known: What is kept already, by key; see `kept`.
    """

    def __init__(
        self, lm: EditableModel, progress: Progress | None = None, known: Mapping[Hashable, Any] | None = None
    ) -> None:
        self.lm = lm
        self.progress = progress or Silent()
        self._kept: dict[Hashable, Any] = dict(known or {})
        self._claims: dict[Path, Claims] = {}
        self._held: Claim | None = None
        self.among_others = False
        """Whether other workers write the same folders, so that claims have to be taken."""

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What a unit makes once and later ones find."""
        if key not in self._kept:
            self._kept[key] = make()
        return cast(T, self._kept[key])

    def claims(self, folder: Path) -> Claims:
        """The claims of a folder."""
        if folder not in self._claims:
            self._claims[folder] = Claims(folder)
        return self._claims[folder]

    def do(self, unit: Unit, folder: Path, claim: Claim) -> None:
        """Do a unit that is claimed, unless somebody has; the claim is given back, also after an error."""
        with claim:
            self._held = claim
            try:
                if not unit.done(folder):
                    unit.run(self, folder)
            finally:
                self._held = None

    def check(self) -> None:
        """Before a unit writes into what is not made in one step: this worker still has the claim.

        Raises:
            ClaimLostError: It was taken over.
        """
        if self._held is not None:
            self._held.check()


@runtime_checkable
class Unit(Protocol):
    """A piece of work. Implementations are small and can be pickled."""

    @property
    def id(self) -> str:
        """Its name among the units of a folder: letters, digits, ``+``, ``-``, ``_`` and ``.``."""

    @property
    def title(self) -> str:
        """What its own progress is called: the stage that counts its steps."""

    @property
    def size(self) -> int:
        """Steps that its progress counts."""

    def done(self, folder: Path) -> bool:
        """Whether its result is there."""

    def run(self, world: World, folder: Path) -> None:
        """Make the result; it appears whole or not at all."""


@dataclass(frozen=True)
class Finished:
    """A unit whose result is in the folder.

    Attributes:
        unit: Its id.
        worker: Who did it; empty where it was done before.
        seconds: Wall time.
    """

    unit: str
    worker: str = ""
    seconds: float = 0.0


@runtime_checkable
class Recipe(Protocol):
    """How a worker gets its world."""

    def build(self, number: int = 0, progress: Progress | None = None) -> World:
        """The world of worker `number`."""


@dataclass(frozen=True)
class ReadyWorld:
    """A recipe for this process alone: the world that it has."""

    world: World

    def build(self, number: int = 0, progress: Progress | None = None) -> World:
        """That world."""
        return self.world


@runtime_checkable
class Workers(Protocol):
    """Who does units.

    Attributes:
        here: Units run in this process, so that it needs the model itself.
        shared: Other processes that nobody coordinates may be at work in the same folder.
    """

    here: bool
    shared: bool

    def map(
        self,
        recipe: Recipe,
        units: Iterable[Unit],
        folder: Path,
        *,
        title: str = "units",
        progress: Progress | None = None,
    ) -> Iterator[Finished]:
        """Do units; yields each when its result is there, in the order in which that happens.

        Args:
            recipe: The world of every worker.
            units: What to do; serial workers take each when they get to it.
            folder: Where results are, which all workers see under this path.
            title: What the progress calls all of it, where several workers share one display.
            progress: Told about it.

        Raises:
            WorkerError: A worker has another model or version, or workers are lost again and again on one unit.
            EmendoError: What a unit raised.
        """
        ...


def check_result(unit: Unit, folder: Path, worker: str, patience: float = 0.0) -> None:
    """See that the result of a unit is there, or wait until it can be seen.

    Args:
        unit: That a worker has finished.
        folder: Where its result is.
        worker: Who it was.
        patience: Seconds to wait.

    Raises:
        WorkerError: It is not: the worker has written elsewhere.
    """
    end = time.monotonic() + patience
    while not unit.done(folder):
        if time.monotonic() >= end:
            raise WorkerError(
                f"{worker} has finished {unit.id!r}, and its result is not in {str(folder)!r}; expected a folder that "
                "all workers see under this path (--out, EMENDO_HOME)"
            )
        time.sleep(1.0)
