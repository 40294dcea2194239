"""One unit after another, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from emendo.parallel.units import Finished, Recipe, Unit, World
from emendo.progress import Progress


class Serial:
    """Does units one after another, each taken when the one before is done; the units show their own progress."""

    here, shared = True, False

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
        world: World | None = None
        for unit in units:
            if unit.done(folder):
                yield Finished(unit.id)
                continue
            world = world or recipe.build(progress=progress)
            begin = time.perf_counter()
            unit.run(world, folder)
            yield Finished(unit.id, "this process", time.perf_counter() - begin)
