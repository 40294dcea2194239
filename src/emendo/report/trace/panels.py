"""Averages of a trace with their intervals: a panel for each class of positions, a line for each kind."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.report.lines import Line, Panel, Point, on_one_scale
from emendo.report.trace.heat import KIND_NAMES
from emendo.tracing import CLASSES, Average, Trace


def average_panels(trace: Trace, averages: Sequence[Average]) -> list[Panel]:
    """One panel for each class of positions that is asked for, all on one scale.

    Positions before the subject are left out: nothing there is corrupted.

    Args:
        trace: The facts.
        averages: Over them.
    """
    span = (0.0, float(trace.made["layers"] - 1))
    panels = []
    for position in CLASSES[1:]:
        own = [average for average in averages if average.position == position]
        if own:
            lines = tuple(Line(KIND_NAMES[average.kind], _points(average)) for average in own)
            title = f"{position} token, {own[0].n} facts"
            panels.append(Panel(title[0].upper() + title[1:], lines, "indirect effect", "layer", span))
    return on_one_scale(panels)


def _points(average: Average) -> tuple[Point, ...]:
    found = enumerate(zip(average.mean, average.interval, strict=True))
    return tuple(Point(layer, mean, interval) for layer, (mean, interval) in found)
