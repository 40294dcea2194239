"""Workers that each load a model of their own: what processes of this machine and workers of Ray have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Self

from emendo.parallel.board import Board
from emendo.parallel.claims import Claims
from emendo.parallel.recipe import WorldRecipe
from emendo.parallel.units import Finished, Recipe, Unit
from emendo.progress import Progress

LOSSES = 5
"""Workers that may be lost on one unit without a step in between."""


class Crew(ABC):
    """Workers that are kept until `close` or the end of the context, so that a model is loaded once in each."""

    here, shared = False, False

    kind: ClassVar[str]
    """What a display calls them."""

    def map(
        self,
        recipe: Recipe,
        units: Iterable[Unit],
        folder: Path,
        *,
        title: str = "units",
        progress: Progress | None = None,
    ) -> Iterator[Finished]:
        """See `Workers.map`."""
        left = []
        for unit in list(units):
            if unit.done(folder):
                yield Finished(unit.id)
            else:
                left.append(unit)
        if not left:
            return
        if not isinstance(recipe, WorldRecipe):
            raise TypeError(f"{self.kind} need a WorldRecipe, found {type(recipe).__name__}")
        try:
            self.hire(recipe)
            with Board(left, f"{title} ({self.size} {self.kind})", progress) as board:
                yield from self.work(deque(left), folder.absolute(), board)
            names = {unit.id for unit in left}
            Claims(folder).sweep(lambda name: name in names)
        except BaseException:  # Ctrl-C, an error of a unit, or a caller that has enough
            self.close()
            raise

    @property
    @abstractmethod
    def size(self) -> int:
        """How many there are for the present recipe."""

    @abstractmethod
    def hire(self, recipe: WorldRecipe) -> None:
        """Be ready to work by a recipe; workers of another one go."""

    @abstractmethod
    def work(self, left: deque[Unit], folder: Path, board: Board) -> Iterator[Finished]:
        """Do units that nobody has done; each is given back when its result is there.

        Raises:
            EmendoError: What a unit raised.
            WorkerError: Too many workers were lost, one after another.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
