"""The summary of a cell, made from its journal alone, and what of it two runs must have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from emendo.arguments import checked
from emendo.evaluate import retention
from emendo.evaluate.measures import MEASURES
from emendo.evaluate.rows import Row, aggregate, holds
from emendo.evaluate.samples import sampled_prompts
from emendo.experiments.cells import Cell
from emendo.experiments.commit import source_commit
from emendo.experiments.ground import LATER, BaseState
from emendo.experiments.meter import Meter
from emendo.io.former_names import LAYER_FIELDS, with_current_names
from emendo.io.versions import versions
from emendo.requests import EditRecord

FORMAT, VERSION = "emendo.cell", 1

TIMING = ("seconds", "peak_bytes", "peak_bytes_by_stage", "begin_bytes_by_stage", "work")
"""What may differ between two runs of one cell: how long it took, what memory it took, and who made a shared search."""


@dataclass(frozen=True)
class Final:
    """What is measured after the last batch; nothing in modes that restore the model.

    Attributes:
        rows: Scores of all records, where the schedule asks for them.
        perplexity: Of the held-out text.
        texts: Continuations of the sampled prompts.
        totals: What all edits together do to each layer.
        further: The further measures, as `further_measures` gives them.
        meter: Seconds and memory outside batches.
    """

    rows: list[Row] | None = None
    perplexity: float | None = None
    texts: list[str] | None = None
    totals: list[dict[str, Any]] | None = None
    further: Mapping[str, Any] | None = None
    meter: Meter = field(default_factory=lambda: Meter(torch.device("cpu")))


@checked
def comparable(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary without what may differ between two runs of one cell."""
    return {name: value for name, value in summary.items() if name not in TIMING}


def make_summary(
    cell: Cell,
    records: Sequence[EditRecord],
    before: BaseState,
    resolved: dict[str, Any],
    batches: Sequence[Mapping[str, Any]],
    rows: Sequence[dict[str, Any]],
    final: Final | None,
    error: dict[str, Any] | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of a cell, and the lines of its records in full.

    Args:
        cell: What was done.
        records: Its records.
        before: What the unedited model says of them.
        resolved: Every setting with its origin.
        batches: Lines of the finished batches.
        rows: Lines of their records.
        final: What was measured at the end; None after an error.
        error: The failure that ended the cell, as a result.
    """
    if final is not None and final.rows is not None:
        rows = [{**line, "final": final.rows[line["position"]]} for line in rows]
    answers = _answers(batches, final)
    for name, parts in answers.items():
        if MEASURES[name].rows and (after := [row for part in parts for row in part]):
            old = before.further[name]
            rows = [{**line, name: {"before": old[at], "after": after[at]}} for at, line in enumerate(rows)]
    whole = error is None
    meter = _added(before, batches, final)
    summary = {
        "format": FORMAT,
        "version": VERSION,
        "cell": {"id": cell.id, **cell.to_dict()},
        "resolved": resolved,
        "scores": {
            "before": aggregate(records, before.rows).to_dict(),
            "immediate": _aggregated(records, [line["immediate"] for line in rows]) if whole else None,
            "final": _aggregated(records, [line["final"] for line in rows]) if whole else None,
        },
        **{
            name: MEASURES[name].summarise(before.further.get(name), parts) if whole else None
            for name, parts in answers.items()
        },
        "perplexity": _perplexity(before, batches, final) if whole else None,
        "retention": _retention(rows) if whole else None,
        "layers": _layers(batches, None if final is None else final.totals),
        "curve": _curve(before, batches, cell),
        "samples": _samples(cell, records, before, batches, final) if whole else [],
        "seconds": meter.seconds,
        "peak_bytes": max(meter.peak_bytes.values(), default=0),
        "peak_bytes_by_stage": meter.peak_bytes,
        "begin_bytes_by_stage": meter.begin_bytes,
        "work": {
            name: sum(batch["work"][name] for batch in batches)
            for name in ("searches", "shared_searches", "shared_seconds")
        },
        "versions": versions(),
        "commit": source_commit(),
        "error": error,
    }
    return summary, list(rows)


def _aggregated(records: Sequence[EditRecord], rows: Sequence[Row | None]) -> dict[str, Any] | None:
    known = [row for row in rows if row is not None]
    return aggregate(records, known).to_dict() if known and len(known) == len(records) else None


def _perplexity(before: BaseState, batches: Sequence[Mapping[str, Any]], final: Final | None) -> dict[str, Any] | None:
    """Before and after; in modes that restore the model, the geometric mean over the batches where it was measured."""
    after = [batch["perplexity"] for batch in batches if batch["perplexity"] is not None]
    if final is not None and final.perplexity is not None:
        after = [final.perplexity]
    if before.perplexity is None or not after:
        return None
    mean = math.exp(math.fsum(map(math.log, after)) / len(after))
    return {"before": before.perplexity, "after": mean, "ratio": mean / before.perplexity, "measured": len(after)}


def _layers(batches: Sequence[Mapping[str, Any]], totals: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Each edited layer: sizes of the sum of all updates, or, where each was taken out again, their mean.

    Constraint error and condition are the worst of all solves; the overlap of keys is the mean over solves of the mean
    within a batch, and the largest.
    """
    reports: dict[int, list[Mapping[str, Any]]] = {}
    for batch in batches:
        for report in batch["layers"]:
            reports.setdefault(report["layer"], []).append(with_current_names(report, LAYER_FIELDS))
    total = {entry["layer"]: entry for entry in totals or ()}
    rows = []
    for layer, own in sorted(reports.items()):
        solves = [solved for report in own for solved in report["solves"]]
        size = total.get(layer) or {name: _mean(report[name] for report in own) for name in _SIZES}
        rows.append(
            {
                "layer": layer,
                **{name: size[name] for name in _SIZES},
                "constraint_error": _largest(solved["constraint_error"] for solved in solves),
                "condition": _largest(solved["system_condition"] for solved in solves),
                "key_overlap": _mean(solved["key_overlap_mean"] for solved in solves),
                "key_overlap_max": _largest(solved["key_overlap_max"] for solved in solves),
                "achieved": _mean(report["achieved"] for report in own),
                "interference": _mean(report["interference"] for report in own),
            }
        )
    return rows


_SIZES = ("relative_norm", "relative_cost")


def _curve(before: BaseState, batches: Sequence[Mapping[str, Any]], cell: Cell) -> list[dict[str, Any]]:
    """The model after more and more edits, from none on; empty in modes that restore it."""
    points = [batch["point"] for batch in batches if batch["point"] is not None]
    if not points:
        return []
    ratio = None if before.perplexity is None else 1.0
    none: dict[str, Any] = {"edits": 0, "perplexity_ratio": ratio, "retention": None, "relative_norm": 0.0}
    for name, measure in MEASURES.items():
        if measure.curve is not None:
            none[name] = measure.curve.value(before.further.get(name) or [])
    return [none, *points]


def _answers(batches: Sequence[Mapping[str, Any]], final: Final | None) -> dict[str, list[Any]]:
    """The answers to every measure, one a batch or one of the end; none to one that is not made."""
    parts = [final.further] if final is not None and final.further is not None else batches
    found = {name: [part[name] for part in parts if part.get(name) is not None] for name in MEASURES}
    return {name: answers for name, answers in found.items() if answers or MEASURES[name].since < LATER}


def _retention(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What held right after each edit against what holds at the end, where both were scored."""
    if not rows or any(line["immediate"] is None or line["final"] is None for line in rows):
        return None
    immediate, final = ([holds(line[when]) for line in rows] for when in ("immediate", "final"))
    firsts = [k for k in _FIRSTS if k <= len(rows)]
    return retention(immediate, final, first=firsts).to_dict()


_FIRSTS = (1, 10, 100, 1000)
"""Numbers of first edits whose retention is told."""


def _samples(
    cell: Cell,
    records: Sequence[EditRecord],
    before: BaseState,
    batches: Sequence[Mapping[str, Any]],
    final: Final | None,
) -> list[dict[str, str]]:
    after = [text for batch in batches for text in batch["texts"]]
    if final is not None and final.texts is not None:
        after = final.texts
    prompts = sampled_prompts(records, cell.measures.samples)
    return [
        {"kind": prompt.kind, "prompt": prompt.prompt, "wanted": prompt.wanted, "before": old, "after": new}
        for prompt, old, new in zip(prompts, before.texts, after, strict=True)
    ]


def _added(before: BaseState, batches: Sequence[Mapping[str, Any]], final: Final | None) -> Meter:
    """Seconds and highest memory by stage. What "before" took is counted in every cell that uses it."""
    meter = Meter(torch.device("cpu"))
    meter.add(before.seconds, before.peak_bytes, before.begin_bytes)
    for batch in batches:
        meter.add(batch["seconds"], batch["peak_bytes"], batch.get("begin_bytes"))
    if final is not None:
        meter.add(final.meter.seconds, final.meter.peak_bytes, final.meter.begin_bytes)
    return meter


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
