"""One display for units that several workers do at once."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.parallel.units import Unit
from emendo.progress import Progress, Silent


class Board:
    """Counts the steps of all units, each step once, also where a unit is begun again.

    Args:
        units: What is to be done.
        title: Of the stage.
        progress: That shows it.
    """

    def __init__(self, units: Sequence[Unit], title: str, progress: Progress | None) -> None:
        self._sizes = {unit.id: unit.size for unit in units}
        self._shown = dict.fromkeys(self._sizes, 0)
        self._title, self._progress = title, progress or Silent()

    def __enter__(self) -> Board:
        self._progress.start(self._title, sum(self._sizes.values()))
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.finish()

    def advance(self, unit: str, steps: int) -> bool:
        """A worker tells how far it is with a unit; whether nobody was as far before."""
        return self._show(unit, min(steps, self._sizes[unit]))

    def end(self, unit: str) -> None:
        """A unit is done."""
        self._show(unit, self._sizes[unit])

    def _show(self, unit: str, steps: int) -> bool:
        new = steps - self._shown[unit]
        if new > 0:
            self._progress.advance(new)
            self._shown[unit] = steps
        return new > 0
