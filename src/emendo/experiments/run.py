"""An experiment from its cells to its folder: everything that can be refused is refused before the first edit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.experiments.cells import Cell
from emendo.experiments.data import Source, read_source, select_records
from emendo.experiments.estimate import Cost, Counter, duration, measured_rates
from emendo.experiments.files import locked
from emendo.experiments.folder import ExperimentFolder
from emendo.experiments.ground import Ground, held_out_text
from emendo.experiments.questions import check_measures
from emendo.experiments.unit import CellUnit
from emendo.methods import Method, ResolvedMethod, resolve_method
from emendo.methods.settings import MomentSettings
from emendo.models import EditableModel
from emendo.parallel import Claims, ReadyWorld, Serial, Workers, World, WorldRecipe
from emendo.parallel.units import Recipe
from emendo.progress import Watched, watching
from emendo.requests import EditRecord
from emendo.statistics import MomentStore, obtain_for_method

Loader = Callable[[str], EditableModel]
"""From a model's name to the model."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell that has been looked at and not run.

    Attributes:
        cell: What to do.
        resolved: Every setting with its origin, as JSON values.
        cost: What it takes; None where every cell of its model is finished, so that the model was not looked at.
        finished: Whether the folder has its summary.
    """

    cell: Cell
    resolved: dict[str, Any]
    cost: Cost | None
    finished: bool


class Experiment:
    """Cells, the folder of their results, and what they share.

    Cells are planned and run model by model, the models in the order of their first cells: one model is in memory at a
    time, and loading it can take longer than a cell.

    Args:
        name: Of the experiment.
        config: What the folder must have been made with, as JSON values.
        cells: What to run.
        folder: Of the results.
        load: Loads a model.
        store: Where second moments are cached; None: under EMENDO_HOME.
        progress: Told about every stage.
    """

    @checked
    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        cells: Sequence[Cell],
        folder: Path,
        load: Loader,
        *,
        store: MomentStore | None = None,
        progress: Watched = None,
    ) -> None:
        self.name, self.config, self.cells = name, dict(config), list(cells)
        self.folder, self.load, self.store = ExperimentFolder(folder), load, store
        self.progress = watching(progress)
        self._sources: dict[tuple[str, str], Source] = {}
        self._ground: tuple[str, Ground] | None = None

    def plan(self) -> list[PlannedCell]:
        """Look at every cell, model by model; nothing is edited.

        Which facts a model answers is found out, where cells ask for it. A model whose cells are all finished is not
        loaded.

        Raises:
            InputError: A method, a setting, a layer or the records of a cell cannot be used.
        """
        cells = _by_model(self.cells)
        found = {cell.id: self.folder.cell(cell.id).summary() for cell in cells}
        models = list(dict.fromkeys(cell.model for cell in cells if found[cell.id] is None))
        looked: dict[str, tuple[list[EditRecord], ResolvedMethod[Method]]] = {}
        for model in reversed(models):  # so that the one whose cells are run first is in memory afterwards
            ground = self._ground_of(model)
            looked |= {cell.id: self._look(cell, ground) for cell in cells if cell.model == model}
        counter, planned = Counter(), []
        for cell in cells:
            summary = found[cell.id]
            if cell.id in looked:
                records, resolved = looked[cell.id]
                cost = counter.count(cell, records, resolved)
                planned.append(PlannedCell(cell, resolved.to_dict(), cost, summary is not None))
            else:
                assert summary is not None
                planned.append(PlannedCell(cell, summary["resolved"], None, True))
        return planned

    def run(self, workers: Workers | None = None) -> Iterator[dict[str, Any]]:
        """Run the cells that are not finished; yields the summary of every cell, model by model.

        A model whose cells are all finished is neither loaded nor compared with what they were made with.

        Args:
            workers: Who runs them; None: this process, one after another. Several workers give the summaries of a model
                in the order in which they are done.

        Raises:
            ExperimentError: The folder holds another experiment, or another process is at work in it.
            InputError: Something about a cell cannot be used; before anything is edited.
            WorkerError: See `emendo.parallel.Workers`.
        """
        workers = workers or Serial()
        with locked(self.folder.path, shared=workers.shared):
            with self._turn(workers):
                self.folder.begin(self.name, self.config, [{"id": cell.id, **cell.to_dict()} for cell in self.cells])
            planned = self.plan()
            with self._turn(workers):
                for plan in planned:
                    self._identify_sources(plan.cell)
            done: list[tuple[dict[str, Any], Cost]] = []
            for model in dict.fromkeys(plan.cell.model for plan in planned):
                yield from self._run_model(model, planned, done, workers)

    def _run_model(
        self,
        model: str,
        planned: Sequence[PlannedCell],
        done: list[tuple[dict[str, Any], Cost]],
        workers: Workers,
    ) -> Iterator[dict[str, Any]]:
        """Run the cells of one model; adds to `done` what tells how long the others take."""
        own = {plan.cell.id: plan for plan in planned if plan.cell.model == model}
        if all(plan.cost is None for plan in own.values()):
            yield from (self._summary(cell_id) for cell_id in own)
            return
        with self._turn(workers):
            self._prepare(model, planned, workers)
        lm = self._ground_of(model).lm
        if workers.here:
            recipe: Recipe = ReadyWorld(World(lm, self.progress))
        else:
            recipe = WorldRecipe.of(lm)
            self._ground = None  # the workers have their own
        del lm
        timed = workers.here and not workers.shared
        units = (
            self._unit(plan, number, planned, done if timed else None)
            for number, plan in enumerate(planned, start=1)
            if plan.cell.id in own
        )
        for finished in workers.map(recipe, units, self.folder.path, title="edits", progress=self.progress):
            summary, cost = self._summary(finished.unit), own[finished.unit].cost
            assert cost is not None
            done.append((summary, cost))
            yield summary

    def _unit(
        self,
        plan: PlannedCell,
        number: int,
        planned: Sequence[PlannedCell],
        done: Sequence[tuple[Mapping[str, Any], Cost]] | None,
    ) -> CellUnit:
        """A cell as a unit; its title says how long all cells from it on will take, if one worker does all of them."""
        left = None if done is None else self.time_left(planned[number - 1 :], done)
        title = f"[{number}/{len(planned)}] {plan.cell.id}" + (f", about {left} left" if left else "")
        assert plan.cost is not None
        store = None if self.store is None else self.store.root.absolute()
        return CellUnit(plan.cell, self._source(plan.cell).sha256, store, plan.cost.edits, title)

    def _summary(self, cell_id: str) -> dict[str, Any]:
        found = self.folder.cell(cell_id).summary()
        assert found is not None
        return found

    def _turn(self, workers: Workers) -> AbstractContextManager[object]:
        """Where several processes share the folder, one at a time writes what is common to all cells."""
        return Claims(self.folder.path).hold("experiment") if workers.shared else nullcontext()

    def _look(self, cell: Cell, ground: Ground) -> tuple[list[EditRecord], ResolvedMethod[Method]]:
        """The records of a cell and its method with every value fixed; raises where either cannot be used."""
        records = self._records(cell, ground)
        resolved = resolve_method(cell.method, ground.lm, layers=cell.layers, settings=cell.settings)
        resolved.config.evaluation_prompts(records)
        check_measures(cell, records)
        return records, resolved

    def _identify_sources(self, cell: Cell) -> None:
        """Records and held-out text are those of the results that the folder holds."""
        name = cell.data if cell.format == "auto" else f"{cell.data} as {cell.format}"
        self.folder.identify("data", name, self._source(cell).identity())
        text = cell.measures.perplexity_text
        if cell.measures.perplexity and text is not None:
            self.folder.identify("texts", text, {"sha256": _digest(held_out_text(cell.measures))})

    def _prepare(self, model: str, planned: Sequence[PlannedCell], workers: Workers) -> None:
        """Before the first cell of a model: it is the one of earlier results, and has its second moments."""
        lm = self._ground_of(model).lm
        self.folder.identify("models", model, _identity(lm))
        self.folder.identify("devices", model, {"type": lm.device.type})
        self._collect_moments(model, [plan.cell for plan in planned if not plan.finished], workers)

    @checked
    def time_left(
        self, planned: Sequence[PlannedCell], done: Sequence[tuple[Mapping[str, Any], Cost]] = ()
    ) -> str | None:
        """How long the unfinished of these cells will take, in words; None where no rate has been measured.

        Args:
            planned: Cells that may have to be run.
            done: Summaries that rates are taken from; empty: those of the folder.
        """
        if not done:
            found = [(self.folder.cell(plan.cell.id).summary(), plan.cost) for plan in planned if plan.finished]
            done = [(summary, cost) for summary, cost in found if summary is not None and cost is not None]
        rates = measured_rates((summary, cost) for summary, cost in done if summary["error"] is None)
        seconds = [plan.cost.seconds(rates) for plan in planned if not plan.finished and plan.cost is not None]
        known = [value for value in seconds if value is not None]
        return duration(sum(known)) if len(known) == len(seconds) else None

    def _collect_moments(self, model: str, cells: Sequence[Cell], workers: Workers) -> None:
        """Collect what several cells of a model need in one pass over the text, where its layers are equally wide."""
        lm = self._ground_of(model).lm
        if len({lm.d_in(layer) for layer in range(lm.n_layers)}) > 1:
            return  # the number of tokens follows the widest layer of a method
        layers: dict[tuple[MomentSettings, int], set[int]] = {}
        for cell in cells:
            if cell.model == model:
                resolved = resolve_method(cell.method, lm, layers=cell.layers, settings=cell.settings)
                if (method := resolved.on_engine()) is not None:
                    layers.setdefault((method.config.moments, cell.seed), set()).update(method.config.written_layers)
        for (settings, seed), wanted in layers.items():
            obtain_for_method(
                *(lm, sorted(wanted), settings), seed=seed, store=self.store, progress=self.progress, workers=workers
            )

    def _ground_of(self, model: str) -> Ground:
        """The model, loaded; one at a time is kept."""
        if self._ground is None or self._ground[0] != model:
            self._ground = None  # so that two are never in memory
            self._ground = (model, Ground(self.load(model), self.folder))
        return self._ground[1]

    def _source(self, cell: Cell) -> Source:
        asked = (cell.data, cell.format)
        if asked not in self._sources:
            self._sources[asked] = read_source(*asked)
        return self._sources[asked]

    @checked
    def records(self, cell: Cell) -> list[EditRecord]:
        """The records of a cell, in the order in which they are edited; loads its model."""
        return self._records(cell, self._ground_of(cell.model))

    def _records(self, cell: Cell, ground: Ground) -> list[EditRecord]:
        return select_records(self._source(cell), cell, ground.answered)


def _by_model(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells, those of one model together, the models in the order of their first cells."""
    models = list(dict.fromkeys(cell.model for cell in cells))
    return sorted(cells, key=lambda cell: models.index(cell.model))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(lm: EditableModel) -> dict[str, str]:
    """What tells a model from another."""
    return {**lm.identity(), "dtype": str(lm.dtype).removeprefix("torch.")}
