"""Which layers take an edit: a measured sweep over layers, and a causal trace of the same facts beside it.

The sweep is an experiment like any other, one cell for each place, so it goes on after a kill. Localisation does not
predict where an edit works (arXiv 2301.04213): the recommendation comes from the sweep, and the trace is compared with
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emendo.datasets import Part
from emendo.errors import ExperimentError
from emendo.evaluate.aggregate import record_measures
from emendo.evaluate.rows import record_scores
from emendo.experiments.cells import Cell, Setting
from emendo.experiments.measures import Measures
from emendo.experiments.run import Experiment
from emendo.methods import resolve_method, spelled_out
from emendo.models import EditableModel
from emendo.progress import Watched
from emendo.requests import EditRecord
from emendo.statistics import MomentStore
from emendo.tracing import PARTS, TraceFact, TraceSettings, trace
from emendo.tracing.facts import raw_prompt
from emendo.tracing.sweep import LayerStudy, Place

COUNT = 9
"""Layers of a sweep where none are named."""

CHEAP = TraceSettings(kinds=("hidden", "mlp"), positions="ends")
"""The trace beside a sweep: states and MLP outputs at the subject's last token and the text's last."""


@dataclass(frozen=True)
class Sweep:
    """Edits of the same facts at one place after another.

    Attributes:
        records: The facts.
        places: What was found at each place, single layers first.
        before: Every metric of every fact in the unedited model.
    """

    records: tuple[EditRecord, ...]
    places: tuple[Place, ...]
    before: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StudySettings:
    """What is swept and traced.

    Args:
        layers: Layers that are edited one at a time; None takes nine, spread evenly over the lower nine tenths.
        window: Also edit so many neighboring layers together around each of them; 0 for none.
        method: An editing method; a baseline solves for no keys and has no leverage or cost.
        settings: Of the method, by dotted name.
        n: Facts.
        batch_size: Edits written together; 1 shows what one edit of a fact does, which is what a trace is about.
        part: Of the subject-disjoint split. ``"dev"`` leaves the others for numbers that are reported.
        only_answered: Only facts that the model answers.
        seed: Random seed (selection, contexts, sampled text).
        trace: How facts are traced.
        format: Of the facts, as `emendo.datasets.load_records` takes it.

    Raises:
        ExperimentError: A number is out of range.
    """

    layers: tuple[int, ...] | None = None
    window: int = 0
    method: str = "emmet"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    n: int = 32
    batch_size: int = 1
    part: Part = "dev"
    only_answered: bool = False
    seed: int = 0
    trace: TraceSettings = CHEAP
    format: str = "auto"

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ExperimentError(f"a sweep over layers compares them on several facts, found n={self.n} (--n 32)")
        if self.window < 0 or self.window == 1:
            raise ExperimentError(
                f"a window has at least 2 layers, found {self.window}; single layers are always swept (--window 5)"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        named = dict(sorted(self.settings.items()))
        layers = None if self.layers is None else list(self.layers)
        own = {name: value for name, value in vars(self).items() if (name, value) != ("format", "auto")}
        return {**own, "layers": layers, "settings": named, "trace": self.trace.to_dict()}


def layer_study(
    lm: EditableModel,
    data: str,
    settings: StudySettings | None = None,
    *,
    folder: Path,
    store: MomentStore | None = None,
    progress: Watched = None,
) -> LayerStudy:
    """Sweep edits over layers and trace the same facts.

    Args:
        lm: The model, without edits; it is left as it was.
        data: Facts: a file or data set as `emendo.datasets` takes it.
        settings: What is swept.
        folder: Of the sweep and of what a run that was interrupted left.
        store: Where second moments are cached; None: under EMENDO_HOME.
        progress: Told about every stage.

    Raises:
        ExperimentError: The folder holds another sweep, or no place could be edited.
        InputError: The facts, the method or a layer cannot be used.
    """
    settings = settings or StudySettings()
    swept = sweep(lm, data, settings, folder=folder, store=store, progress=progress)
    facts = [TraceFact(raw_prompt(record.request), record.request.subject) for record in swept.records]
    traced = trace(lm, facts, settings.trace, skip=True, parts=folder / PARTS, progress=progress)
    known = int(np.sum([_said(record, fact.said) for record, fact in _pairs(swept.records, traced.facts)]))
    return LayerStudy(
        model=lm.identity(),
        n_layers=lm.n_layers,
        made={"data": data, **settings.to_dict()},
        facts=tuple(record.request.text for record in swept.records),
        places=swept.places,
        before=swept.before,
        trace=traced,
        known=known,
    )


def sweep(
    lm: EditableModel,
    data: str,
    settings: StudySettings,
    *,
    folder: Path,
    store: MomentStore | None = None,
    progress: Watched = None,
) -> Sweep:
    """Edit the same facts at one place after another; nothing is traced.

    Args:
        lm: The model, without edits; it is left as it was.
        data: Facts: a file or data set as `emendo.datasets` takes it.
        settings: What is swept.
        folder: Of the sweep and of what a run that was interrupted left.
        store: Where second moments are cached; None: under EMENDO_HOME.
        progress: Told about every stage.

    Raises:
        ExperimentError: The folder holds another sweep, or no place could be edited.
        InputError: The facts, the method or a layer cannot be used.
    """
    if resolve_method(settings.method, lm, settings=settings.settings).on_engine() is None:
        raise ExperimentError(
            f"{settings.method!r} is a baseline, which has no keys; expected a method that solves for them, such as "
            "emmet (--method)"
        )
    places = swept_places(lm, settings)
    cells = [_cell(lm, data, settings, layers) for layers in places]
    experiment = Experiment(
        "layers",
        {"data": data, **settings.to_dict(), "places": [list(layers) for layers in places]},
        cells,
        folder / "sweep",
        lambda _name: lm,
        store=store,
        progress=progress,
    )
    records = experiment.records(cells[0])
    _check_scored(records)
    summaries = list(experiment.run())
    found = [
        _place(layers, summary, *experiment.folder.cell(cell.id).resume(), records)
        for layers, cell, summary in zip(places, cells, summaries, strict=True)
    ]
    if all(place.error is not None for place in found):
        raise ExperimentError(f"no layer could be edited. The first: {found[0].error}")
    before = _measures(records, [line["before"] for line in experiment.folder.cell(cells[0].id).resume()[1]])
    return Sweep(tuple(records), tuple(found), before)


def _check_scored(records: Sequence[EditRecord]) -> None:
    """Refuse facts that do not define S, by which layers are compared, before anything is edited."""
    compared = [record for record in records if record.target_true is not None]
    for what, found in (
        ("target_true", compared),
        ("paraphrase_prompts", [record for record in compared if record.paraphrase_prompts]),
        ("neighborhood_prompts", [record for record in compared if record.neighborhood_prompts]),
    ):
        if len(found) < 2:
            raise ExperimentError(
                f"layers are compared by S, the harmonic mean of ES, PS and NS, and {len(found)} of {len(records)} "
                f"facts have {what}; expected at least 2, as in CounterFact (--facts)"
            )


def swept_places(lm: EditableModel, settings: StudySettings) -> list[tuple[int, ...]]:
    """Single layers, then windows around them, each once.

    Raises:
        LayerError: A layer that the model does not have.
        ExperimentError: A window is wider than the model.
    """
    count = lm.n_layers
    if settings.layers is None:
        spread = np.linspace(0, count - 1 - count // 10, min(COUNT, count))
        layers = sorted({int(value) for value in spread.round()})
    else:
        layers = lm.check_layers(settings.layers)
    if settings.window > count:
        raise ExperimentError(f"a window of {settings.window} layers in a model of {count}; expected fewer (--window)")
    places: dict[tuple[int, ...], None] = {(layer,): None for layer in layers}
    for layer in layers if settings.window else ():
        first = min(max(0, layer - settings.window // 2), count - settings.window)
        places[tuple(range(first, first + settings.window))] = None
    return list(places)


def _cell(lm: EditableModel, data: str, settings: StudySettings, layers: tuple[int, ...]) -> Cell:
    method, named, _ = spelled_out(settings.method, settings.settings, layers)
    if len(layers) > 1 and "distribution" not in named:
        alone = resolve_method(method, lm, layers=layers[:1], settings=named).on_engine()
        if alone is not None and alone.config.distribution == "single":
            named["distribution"] = "even"
    batches = -(-settings.n // settings.batch_size)
    return Cell(
        model=lm.name,
        data=data,
        format=settings.format,
        method=method,
        mode="single" if settings.batch_size == 1 else "batch",
        batch_size=settings.batch_size,
        n=settings.n,
        schedule="immediate",
        settings=named,
        layers=layers,
        seed=settings.seed,
        part=settings.part,
        only_answered="argmax" if settings.only_answered else None,
        measures=Measures(perplexity_batches=min(4, batches), samples=0),
    )


def _place(
    layers: tuple[int, ...],
    summary: Mapping[str, Any],
    batches: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[EditRecord],
) -> Place:
    """What a cell found, with the numbers of every fact."""
    if summary["error"] is not None:
        return Place(layers, error=f"{summary['error']['type']}: {summary['error']['message'].splitlines()[0]}")
    targets = [found for batch in batches for found in batch.get("targets") or ()]
    leverage = [value for batch in batches for values in (batch.get("leverage") or {}).values() for value in values]
    perplexity = summary["perplexity"]
    return Place(
        layers,
        scores=summary["scores"]["immediate"],
        measures=_measures(records, [line["immediate"] for line in rows]),
        perplexity_ratio=None if perplexity is None else perplexity["ratio"],
        relative_norm=max(layer["relative_norm"] for layer in summary["layers"]),
        relative_cost=sum(layer["relative_cost"] for layer in summary["layers"]),
        target_nll=_mean([found["nll"] for found in targets]),
        delta_ratio=_mean([found["delta_norm"] / found["init_norm"] for found in targets if found["init_norm"]]),
        leverage=_mean(leverage),
        seconds=sum(summary["seconds"].values()),
    )


def _measures(records: Sequence[EditRecord], rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """Every measure of every fact, in [0, 1] or as a margin; NaN where it is not defined."""
    scored = [record_measures(score) for score in record_scores(records, rows)]
    return {name: np.array([row[name] for row in scored]) for name in scored[0]}


def _pairs(records: Sequence[EditRecord], facts: Sequence[Any]) -> list[tuple[EditRecord, Any]]:
    by_text = {record.request.text: record for record in records}
    return [(by_text[fact.text], fact) for fact in facts]


def _said(record: EditRecord, said: str) -> bool:
    """Whether the model says the beginning of the true answer."""
    return record.target_true is not None and bool(said.strip()) and record.target_true.strip().startswith(said.strip())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
