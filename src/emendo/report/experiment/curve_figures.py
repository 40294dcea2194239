"""Plots along a sequence of edits: retention, growth of the change, perplexity and entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.evaluate import wilson_interval
from emendo.evaluate.measures import MEASURES
from emendo.report.experiment.axes import FACETS, label_of, telling
from emendo.report.experiment.figure import MOST_LINES, Figure, Line, Panel, n_text, note, seed_text
from emendo.report.experiment.folder import Cell, entry, number, rows
from emendo.report.experiment.measures import Value

Read = Callable[[Cell, Mapping[str, Any]], Value | None]


@dataclass(frozen=True)
class _Measure:
    """One panel: what is read from each row of a cell's curve."""

    title: str
    unit: str
    read: Read
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Curve:
    name: str
    title: str
    measures: tuple[_Measure, ...]


def _field(name: str) -> Read:
    def read(cell: Cell, row: Mapping[str, Any]) -> Value | None:
        value = number(row.get(name))
        return None if value is None else Value(value)

    return read


def _retention(cell: Cell, row: Mapping[str, Any]) -> Value | None:
    """Percent retained, with a Wilson interval where the number of edits behind it is known."""
    percent, edits = number(row.get("retention")), number(row.get("edits"))
    if percent is None or edits is None:
        return None
    n = _asked(cell, int(edits))
    interval = wilson_interval(min(n, round(n * percent / 100)), n) if n else None
    if interval is None:
        return Value(percent)
    return Value(percent, 100 * interval[0], 100 * interval[1], n)


def _asked(cell: Cell, edits: int) -> int:
    """How many edits a point of the retention curve is about.

    They are the first ones, up to ``measures.retention_first``, of those written so far that held right after they were
    written; all of those where that was not scored.
    """
    first = number(entry(cell.plan, "measures.retention_first"))
    most = edits if first is None else min(edits, int(first))
    held = {
        int(place): _held(row)
        for row in cell.records
        if (place := number(row.get("position"))) is not None and row.get("immediate") is not None
    }
    return sum(held.get(place, False) for place in range(most)) if held else most


def _held(row: Mapping[str, Any]) -> bool:
    """Whether every token of the new target was the argmax right after the edit."""
    flags = entry(row, "immediate.edited.argmax_new")
    return isinstance(flags, list) and bool(flags) and flags[0] is True


_CURVES = (
    _Curve(
        "retention",
        "Retention of the first edits along the sequence",
        (_Measure("edits that still hold (argmax)", "%", _retention, (-3, 103)),),
    ),
    _Curve(
        "norm-growth",
        "Growth of the change along the sequence",
        (_Measure("‖ΔW‖ / ‖W‖, largest of the layers", "ratio", _field("relative_norm")),),
    ),
    _Curve(
        "perplexity",
        "Perplexity and generation entropy along the sequence",
        (
            _Measure("perplexity of held-out text", "× base", _field("perplexity_ratio")),
            *(
                _Measure(measure.curve.title, measure.curve.unit, _field(name))
                for name, measure in MEASURES.items()
                if measure.curve is not None
            ),
        ),
    ),
)


def curve_figures(cells: Sequence[Cell], place: str, suffix: str) -> list[Figure]:
    """The curves of cells that have at least two points.

    Args:
        cells: Of one model, data set and mode.
        place: What they have in common.
        suffix: Of the figures' names.
    """
    names = [name for name in telling(cells) if name not in FACETS]
    running = [cell for cell in cells if len(_rows(cell)) > 1]
    drawn = running[:MOST_LINES]
    left_out = f"{len(running) - MOST_LINES} more cells in the tables" if len(running) > MOST_LINES else ""
    figures = []
    for curve in _CURVES:
        panels = [_panel(measure, drawn, names) for measure in curve.measures]
        panels = [panel for panel in panels if panel.lines]
        if panels:
            texts = [place, n_text(map(_length, drawn), "edits in a sequence"), _interval_text(panels)]
            figures.append(
                Figure(
                    name=f"{curve.name}{suffix}",
                    title=curve.title,
                    note=note([*texts, seed_text(drawn), left_out]),
                    x_label="edits in the model",
                    panels=tuple(panels),
                )
            )
    return figures


def _panel(measure: _Measure, cells: Sequence[Cell], names: Sequence[str]) -> Panel:
    lines = []
    for cell in cells:
        found = [(float(row["edits"]), measure.read(cell, row)) for row in _rows(cell)]
        if points := tuple(sorted(((x, value) for x, value in found if value is not None), key=lambda point: point[0])):
            lines.append(Line(label_of(cell, names), points))
    return Panel(measure.title, measure.unit, tuple(lines), bounds=measure.bounds)


def _rows(cell: Cell) -> list[Mapping[str, Any]]:
    """The rows of a cell's curve that say after how many edits they were taken."""
    return [row for row in rows(cell.get("curve")) if number(row.get("edits")) is not None]


def _length(cell: Cell) -> int:
    return int(max(float(row["edits"]) for row in _rows(cell)))


def _interval_text(panels: Sequence[Panel]) -> str:
    counts = [value.n for panel in panels for line in panel.lines for _, value in line.points if value.n is not None]
    if not counts:
        return "no interval: one measurement of the whole model a point"
    return f"bars: 95 % Wilson intervals over {n_text(counts, 'edits asked a point').removeprefix('n = ')}"
