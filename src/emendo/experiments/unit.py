"""A cell as a unit of work: what a worker in another process needs to run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emendo.errors import WorkerError
from emendo.experiments.cell_run import run_cell
from emendo.experiments.cells import Cell
from emendo.experiments.data import Source, read_source, select_records
from emendo.experiments.folder import ExperimentFolder
from emendo.experiments.ground import Ground
from emendo.experiments.meter import release_memory
from emendo.parallel import Joined, World
from emendo.statistics import MomentStore


@dataclass(frozen=True)
class CellUnit:
    """One cell; its result is the summary in its folder.

    Attributes:
        cell: What to do.
        data_sha256: Digest of the records that `cell.data` names, as the command read them.
        store: Folder of second moments; None: under EMENDO_HOME.
        size: Its edits.
        title: What the progress calls it.
    """

    cell: Cell
    data_sha256: str
    store: Path | None
    size: int
    title: str

    @property
    def id(self) -> str:
        """The cell's."""
        return self.cell.id

    def done(self, folder: Path) -> bool:
        """Whether the folder has its summary."""
        return ExperimentFolder(folder).cell(self.id).summary() is not None

    def run(self, world: World, folder: Path) -> None:
        """Run the cell, or what is left of it.

        Raises:
            WorkerError: This worker reads other records than the command.
            InputError: See `run_cell`.
        """
        ground, source = ground_of(world, folder), source_of(world, self.cell.data, self.cell.format)
        if source.sha256 != self.data_sha256:
            raise WorkerError(
                f"a worker reads other records from {self.cell.data!r} than the command that started it (digests "
                f"{source.sha256[:12]} and {self.data_sha256[:12]}); give all machines the same file"
            )
        release_memory()
        run_cell(
            self.cell,
            select_records(source, self.cell, ground.answered),
            ground,
            zsre=source.zsre,
            store=MomentStore(self.store),
            progress=world.progress,
            title=self.title,
        )


def ground_of(world: World, folder: Path) -> Ground:
    """What is known of a worker's model, in the folder of an experiment.

    Among others, searches that cells share are divided: who needs one that another worker is at makes others meanwhile.
    """
    searchers = Joined(member=False) if world.among_others else None
    return world.kept(("ground", folder), lambda: Ground(world.lm, ExperimentFolder(folder, world.check), searchers))


def source_of(world: World, name: str, format: str) -> Source:
    """Records, read once."""
    return world.kept(("records", name, format), lambda: read_source(name, format))
