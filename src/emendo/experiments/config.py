"""The YAML file of an experiment: a grid, read strictly, and the cells that it stands for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emendo.arguments import checked
from emendo.arguments.suggest import nearest, unknown_name
from emendo.datasets import Part
from emendo.errors import ExperimentError
from emendo.evaluate.answered import Level
from emendo.experiments.cells import Cell, Setting
from emendo.experiments.measures import Measures
from emendo.experiments.modes import Mode, Schedule, default_batch_size, default_schedule, restores
from emendo.io import strict_yaml
from emendo.io.plain_file import read_plain_text
from emendo.methods import spelled_out
from emendo.methods.fairness import Search, search_settings

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)
_Settings = dict[str, Setting]
_Axis = dict[str, Setting | list[Setting]]


class MethodEntry(BaseModel):
    """A method with settings or a mode of its own.

    Attributes:
        method: Name of a method or baseline.
        settings: By dotted name; they win over those of the experiment.
        mode: Of this method.
        batch_sizes: Edits per step, in this method's cells.
        layers: Edited layers of each cell; null stands for the preset's.
    """

    model_config = _STRICT

    method: str
    settings: _Settings = {}
    mode: Mode | None = None
    batch_sizes: list[int] | None = None
    layers: list[list[int] | None] | None = None


class CellEntry(BaseModel):
    """One explicit cell; what it leaves out is the experiment's.

    Attributes:
        method: Name of a method or baseline.
        model: One model; left out: each of the experiment's.
        mode: How its edits are written.
        batch_size: Edits per step.
        n: Records; required if the experiment's n is a list.
        seed: Of selection, contexts and self-sampled moments; left out: the first of the experiment's.
        layers: Edited layers.
        settings: By dotted name, beside those of the experiment that are no axis.
        schedule: When its records are scored.
    """

    model_config = _STRICT

    method: str
    model: str | None = None
    mode: Mode | None = None
    batch_size: int | None = None
    n: int | None = None
    seed: int | None = None
    layers: list[int] | None = None
    settings: _Settings = {}
    schedule: Schedule | None = None


class ExperimentConfig(BaseModel):
    """An experiment: the product of its axes, less what is excluded, and explicit cells.

    Attributes:
        name: Of the experiment.
        data: File or data set of records; a path is relative to the working directory.
        format: Of the data, as `--format`; ``auto`` tells it from the rows.
        n: Records of each cell; a list is an axis.
        methods: Names of methods and baselines, or entries with settings of their own.
        models: As `--model` takes them.
        mode: Of all methods that name no other.
        batch_sizes: Edits per step; left out where the mode has but one.
        layers: Edited layers of each cell; null stands for the preset's.
        distributions: Values of the setting `distribution`; null leaves it to the method.
        seeds: Of selection, contexts and self-sampled moments.
        search: How every method searches its values, so that they are compared by their ideas: ``exact`` (25 steps in
            float32) or ``fast`` (in bfloat16, ended once the target is said); null leaves it to each method.
        settings: By dotted name; a list is an axis.
        exclude: Cells that match every field of one of these are left out.
        cells: Cells that are not in the grid.
        schedule: Immediate, final or both; what the mode has, where it is left out.
        part: Of the subject-disjoint split.
        only_answered: Only facts that the base model answers: ``argmax`` or ``probability``.
        unique_subjects: At most one record for each subject.
        measures: What is measured.
        device: As `--device`.
        dtype: As `--dtype`.
    """

    model_config = _STRICT

    name: str = Field(min_length=1)
    data: str
    n: int | list[int]
    methods: list[str | MethodEntry] = []
    models: list[str] = ["demo"]
    mode: Mode = "batch"
    batch_sizes: list[int] | None = None
    layers: list[list[int] | None] = [None]
    distributions: list[str | None] = [None]
    seeds: list[int] = [0]
    search: Search | None = None
    settings: _Axis = {}
    exclude: list[dict[str, Any]] = []
    cells: list[CellEntry] = []
    schedule: Schedule | None = None
    part: Part = "all"
    only_answered: Level | None = None
    unique_subjects: bool = True
    measures: Measures = Measures()
    device: str = "auto"
    dtype: str = "auto"
    format: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the fields of later versions that say nothing."""
        plain = {"format": "auto", "search": None}
        return self.model_dump(mode="json", exclude={name for name in plain if getattr(self, name) == plain[name]})

    @checked
    def with_n(self, n: int) -> ExperimentConfig:
        """The same grid with another number of records; batches that are larger are left out."""

        def fitting(sizes: list[int] | None) -> list[int] | None:
            return None if sizes is None else [size for size in sizes if size <= n] or [n]

        methods = [
            entry if isinstance(entry, str) else entry.model_copy(update={"batch_sizes": fitting(entry.batch_sizes)})
            for entry in self.methods
        ]
        return self.model_copy(update={"n": n, "batch_sizes": fitting(self.batch_sizes), "methods": methods})

    def expand(self) -> list[Cell]:
        """All cells, each once, in the order in which they are run: models outermost, so that each is loaded once.

        Raises:
            ExperimentError: There is no cell, a combination means nothing, or an exclusion names an unknown field.
        """
        self._check_exclusions()
        grid = [cell for model in self.models for entry in self.methods for cell in self._grid(model, entry)]
        kept = [cell for cell in grid if not any(_matches(cell, pattern) for pattern in self.exclude)]
        explicit = [self._explicit(model, entry) for model in self.models for entry in self.cells]
        cells = {cell.id: cell for cell in [*kept, *explicit]}
        if not cells:
            raise ExperimentError(
                f"{self.name!r} has no cell: {len(grid)} in the grid, all excluded; name methods, or exclude less"
            )
        return sorted(cells.values(), key=lambda cell: self._place(cell.model))

    def _place(self, model: str) -> int:
        return self.models.index(model) if model in self.models else len(self.models)

    def _grid(self, model: str, entry: str | MethodEntry) -> Iterator[Cell]:
        own = MethodEntry(method=entry) if isinstance(entry, str) else entry
        mode = own.mode or self.mode
        ns = self.n if isinstance(self.n, list) else [self.n]
        axes = {name: value if isinstance(value, list) else [value] for name, value in self.settings.items()}
        sizes = own.batch_sizes or (self.batch_sizes if mode in ("batch", "sequential-batched") else None)
        layers = self.layers if own.layers is None else own.layers
        every: list[int | None] = [*sizes] if sizes else [None]
        combined = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        for n, size, chosen, distribution, seed in itertools.product(ns, every, layers, self.distributions, self.seeds):
            named: dict[str, Setting] = {} if distribution is None else {"distribution": distribution}
            for values in combined:
                settings = search_settings(own.method, self.search) | values | named | own.settings
                yield self._cell(model, own.method, mode, size, n, seed, chosen, settings, self.schedule)

    def _explicit(self, model: str, entry: CellEntry) -> Cell:
        if entry.n is None and isinstance(self.n, list):
            raise ExperimentError(
                f"cell {entry.method!r}: n is an axis of the grid, so an explicit cell needs its own n"
            )
        fixed = {name: value for name, value in self.settings.items() if not isinstance(value, list)}
        n = entry.n if entry.n is not None else self.n
        assert isinstance(n, int)
        return self._cell(
            entry.model or model,
            entry.method,
            entry.mode or self.mode,
            entry.batch_size,
            n,
            self.seeds[0] if entry.seed is None else entry.seed,
            entry.layers,
            search_settings(entry.method, self.search) | fixed | entry.settings,
            entry.schedule or self.schedule,
        )

    def _cell(
        self,
        model: str,
        method: str,
        mode: Mode,
        batch_size: int | None,
        n: int,
        seed: int,
        layers: list[int] | None,
        settings: Mapping[str, Setting],
        schedule: Schedule | None,
    ) -> Cell:
        if schedule is None or (schedule == "both" and restores(mode)):
            schedule = default_schedule(mode)
        name, values, chosen = spelled_out(method, settings, layers)
        return Cell(
            model=model,
            data=self.data,
            method=name,
            settings=values,
            layers=chosen,
            mode=mode,
            batch_size=default_batch_size(mode, n) if batch_size is None else batch_size,
            n=n,
            seed=seed,
            schedule=schedule,
            part=self.part,
            only_answered=self.only_answered,
            unique_subjects=self.unique_subjects,
            measures=self.measures,
            format=self.format,
        )

    def _check_exclusions(self) -> None:
        settings = set(self.settings) | {
            name for entry in self.methods if isinstance(entry, MethodEntry) for name in entry.settings
        }
        known = [*_MATCHED, "distribution", *sorted(settings)]
        for pattern in self.exclude:
            for name in pattern:
                if name not in known:
                    raise ExperimentError(unknown_name("field of exclude", name, known, "exclude: in the experiment"))


_MATCHED = ("model", "method", "mode", "batch_size", "n", "seed", "layers", "schedule")


def _matches(cell: Cell, pattern: Mapping[str, Any]) -> bool:
    """Whether a cell has every value that a pattern names; a list of values (of layers: a list of lists) is any."""
    content = cell.to_dict()
    for name, wanted in pattern.items():
        found = content[name] if name in _MATCHED else cell.settings.get(name)
        several = isinstance(wanted, list) and (name != "layers" or any(isinstance(one, list) for one in wanted))
        if found not in (wanted if several else [wanted]):
            return False
    return True


@checked
def find_config(path: Path) -> Path:
    """The file that is named: itself, or the experiment of that name that comes with Emendo.

    Args:
        path: A path, or a name without a folder and without ``.yaml``.
    """
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    package = Path(str(resources.files("emendo")))
    # In a wheel they are data of the package, in a checkout they stand beside it.
    folders = (package / "data" / "experiments", package.parents[1] / "experiments")
    found = [folder / f"{path}.yaml" for folder in folders if (folder / f"{path}.yaml").is_file()]
    return found[0] if found else path


@checked
def read_config(path: Path) -> ExperimentConfig:
    """The configuration in a YAML file.

    Raises:
        ExperimentError: The file is missing, no YAML, or not a configuration; every problem is named.
    """
    try:
        content = strict_yaml.loads(read_plain_text(path, encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"cannot read {str(path)!r}: {error}; expected an experiment in YAML") from error
    if not isinstance(content, dict):
        raise ExperimentError(
            f"{str(path)!r} holds a {type(content).__name__}, expected an experiment: name:, data: ..."
        )
    try:
        return ExperimentConfig.model_validate(content)
    except ValidationError as error:
        raise ExperimentError("\n".join([f"{str(path)!r} is not an experiment:", *_problems(error)])) from error


_MODELS: Mapping[str, type[BaseModel]] = {"methods": MethodEntry, "cells": CellEntry}

_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("algorithm", "algorithms", "algs", "alg_name", "editing_method"), ("methods",)),
    **dict.fromkeys(("dataset", "ds_name", "data_dir"), ("data",)),
    **{"model_name": ("models",), "dataset_size_limit": ("n",), "num_edits": ("n", "batch_sizes")},
    **{"hparams": ("settings",), "hparams_fname": ("settings",), "metrics": ("measures",), "name": ("method",)},
}
"""What fields are called elsewhere, in the experiments of ROME, MEMIT and EasyEdit for instance."""


def _problems(error: ValidationError) -> list[str]:
    """One line for each problem, in our words; then once what fields there are."""
    lines, owners = [], []
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        place = ".".join(part for part in where if part not in ("str", "MethodEntry"))
        if problem["type"] == "measure":
            lines.append(f"  {place}: {problem['msg']}")
        elif problem["type"] == "missing":
            lines.append(f"  {place}: is missing")
        elif problem["type"] == "extra_forbidden":
            owner = _MODELS.get(where[0], ExperimentConfig) if len(where) > 1 else ExperimentConfig
            owners.append((owner, where[0] if len(where) > 1 else "the file"))
            name = where[-1]
            near = _ELSEWHERE.get(name) or nearest(name, owner.model_fields)
            lines.append(
                f"  {place}: unknown field" + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
            )
        elif not (where[0] == "methods" and where[-1] == "str"):  # the other arm of the union says what is wrong
            lines.append(f"  {place}: {problem['msg'].lower()}, found {problem['input']!r:.80}")
    lines += [f"Fields of {what}: {', '.join(owner.model_fields)}" for owner, what in dict.fromkeys(owners)]
    return lines or [f"  {error}"]
