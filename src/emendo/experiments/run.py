"""An experiment from its cells to its folder: everything that can be refused is refused before the first edit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.experiments.cell_run import run_cell
from emendo.experiments.cells import Cell
from emendo.experiments.data import Source, read_source, select_records
from emendo.experiments.estimate import Cost, Counter, duration, measured_rates
from emendo.experiments.files import locked
from emendo.experiments.folder import ExperimentFolder
from emendo.experiments.ground import Ground, held_out_text
from emendo.experiments.questions import check_measures
from emendo.methods import ResolvedMethod
from emendo.methods.config import MomentSettings
from emendo.models import ModelAdapter
from emendo.moments import MomentStore, obtain_for_method
from emendo.progress import Progress, Silent
from emendo.requests import EditRecord
from emendo.techniques import asked_after, resolve_technique

Loader = Callable[[str], ModelAdapter]
"""From a model's name to the model."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell that has been looked at and not run.

    Attributes:
        cell: What to do.
        resolved: Every setting with its origin, as JSON values.
        cost: What it takes.
        finished: Whether the folder has its summary.
    """

    cell: Cell
    resolved: dict[str, Any]
    cost: Cost
    finished: bool


class Experiment:
    """Cells, the folder of their results, and what they share.

    Args:
        name: Of the experiment.
        config: What the folder must have been made with, as JSON values.
        cells: What to run; cells of one model follow each other.
        folder: Of the results.
        load: Loads a model.
        store: Where second moments are cached; None: under EMENDO_HOME.
        progress: Told about every stage.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        cells: Sequence[Cell],
        folder: Path,
        load: Loader,
        *,
        store: MomentStore | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name, self.config, self.cells = name, dict(config), list(cells)
        self.folder, self.load, self.store = ExperimentFolder(folder), load, store
        self.progress = progress or Silent()
        self._sources: dict[str, Source] = {}
        self._ground: tuple[str, Ground] | None = None

    def plan(self) -> list[PlannedCell]:
        """Look at every cell; nothing is edited. Which facts a model answers is found out, where cells ask for it.

        Raises:
            InputError: A method, a setting, a layer or the records of a cell cannot be used.
        """
        counter, planned = Counter(), []
        for cell in self.cells:
            ground = self._ground_of(cell.model)
            records = self._records(cell, ground)
            resolved = resolve_technique(cell.method, ground.adapter, layers=cell.layers, settings=cell.settings)
            asked_after(resolved.config, records)
            check_measures(cell, records)
            finished = self.folder.cell(cell.id).summary() is not None
            planned.append(PlannedCell(cell, resolved.to_dict(), counter.count(cell, records, resolved), finished))
        return planned

    def run(self) -> Iterator[dict[str, Any]]:
        """Run the cells that are not finished; yields the summary of every cell, in their order.

        Raises:
            ExperimentError: The folder holds another experiment, or another process is at work in it.
            InputError: Something about a cell cannot be used; before anything is edited.
        """
        with locked(self.folder.path):
            self.folder.begin(self.name, self.config, [{"id": cell.id, **cell.to_dict()} for cell in self.cells])
            planned = self.plan()
            done: list[tuple[dict[str, Any], Cost]] = []
            for model in dict.fromkeys(plan.cell.model for plan in planned if not plan.finished):
                self._collect_moments(model, [plan.cell for plan in planned if not plan.finished])
            for number, (cell, plan) in enumerate(zip(self.cells, planned, strict=True), start=1):
                ground = self._ground_of(cell.model)
                self.folder.identify("models", cell.model, _identity(ground.adapter))
                self.folder.identify("data", cell.data, self._source(cell.data).identity())
                self.folder.identify("devices", cell.model, {"type": ground.adapter.device.type})
                text = cell.measures.perplexity_text
                if cell.measures.perplexity and text is not None:
                    self.folder.identify("texts", text, {"sha256": _digest(held_out_text(cell.measures))})
                left = self.time_left(planned[number - 1 :], done)
                title = f"[{number}/{len(planned)}] {cell.id}" + (f", about {left} left" if left else "")
                records = self._records(cell, ground)
                zsre = self._source(cell.data).zsre
                summary = run_cell(
                    cell, records, ground, zsre=zsre, store=self.store, progress=self.progress, title=title
                )
                done.append((summary, plan.cost))
                yield summary

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
            done = [(summary, cost) for summary, cost in found if summary is not None]
        rates = measured_rates((summary, cost) for summary, cost in done if summary["error"] is None)
        seconds = [plan.cost.seconds(rates) for plan in planned if not plan.finished]
        known = [value for value in seconds if value is not None]
        return duration(sum(known)) if len(known) == len(seconds) else None

    def _collect_moments(self, model: str, cells: Sequence[Cell]) -> None:
        """Collect what several cells of a model need in one pass over the text, where its layers are equally wide."""
        adapter = self._ground_of(model).adapter
        if len({adapter.d_in(layer) for layer in range(adapter.n_layers)}) > 1:
            return  # the number of tokens follows the widest layer of a method
        layers: dict[tuple[MomentSettings, int], set[int]] = {}
        for cell in cells:
            if cell.model == model:
                resolved = resolve_technique(cell.method, adapter, layers=cell.layers, settings=cell.settings)
                if isinstance(resolved, ResolvedMethod):
                    config = resolved.config
                    layers.setdefault((config.moments, cell.seed), set()).update(config.written_layers)
        for (settings, seed), wanted in layers.items():
            obtain_for_method(adapter, sorted(wanted), settings, seed=seed, store=self.store, progress=self.progress)

    def _ground_of(self, model: str) -> Ground:
        """The model, loaded; one at a time is kept."""
        if self._ground is None or self._ground[0] != model:
            self._ground = None  # so that two are never in memory
            self._ground = (model, Ground(self.load(model), self.folder))
        return self._ground[1]

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = read_source(name)
        return self._sources[name]

    def _records(self, cell: Cell, ground: Ground) -> list[EditRecord]:
        return select_records(self._source(cell.data), cell, ground.answered)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(adapter: ModelAdapter) -> dict[str, str]:
    """What tells a model from another."""
    return {
        "name": adapter.name,
        "model_type": adapter.spec.model_type,
        "weights_sha256": adapter.weights_digest(),
        "tokenizer_sha256": adapter.tokenizer_digest(),
        "dtype": str(adapter.dtype).removeprefix("torch."),
    }
