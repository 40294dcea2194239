"""A plot as plain data: panels over one x axis, and the note that says how to judge them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emendo.report.experiment.axes import axis_value
from emendo.report.experiment.folder import Cell
from emendo.report.experiment.measures import Value

MOST_LINES = 14
"""Lines of one plot that can still be told apart."""

BASELINE = "before (unedited)"


@dataclass(frozen=True)
class Line:
    """Points of one line; several points may share an x (repeats)."""

    label: str
    points: tuple[tuple[float, Value], ...]


@dataclass(frozen=True)
class Panel:
    """One measure, drawn over the figure's x axis."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    log: bool = False
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figure:
    """Panels over one x axis.

    Attributes:
        name: File name without ending, unique in the report.
        title: One line.
        note: What the reader needs to judge it: n, intervals, seeds, mode, schedule.
        x_label: With its unit.
        panels: At least one.
        ticks: Positions and labels of the x axis; empty lets the plot choose.
        x_log: Logarithmic x axis.
        connected: Points of a line are joined.
    """

    name: str
    title: str
    note: str
    x_label: str
    panels: tuple[Panel, ...]
    ticks: tuple[tuple[float, str], ...] = ()
    x_log: bool = False
    connected: bool = True


def note(parts: Iterable[str]) -> str:
    """The parts of a note that say something."""
    return " · ".join(part for part in parts if part)


def n_text(counts: Iterable[int], what: str) -> str:
    """How many there are behind the points of a plot; there is at least one count."""
    found = sorted(set(counts))
    return f"n = {found[0]:,} {what}" if len(found) == 1 else f"n = {found[0]:,} to {found[-1]:,} {what}"


def seed_text(cells: Sequence[Cell]) -> str:
    """Seeds of the points of a plot."""
    seeds = sorted({str(axis_value(cell, "seed")) for cell in cells})
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(seeds)}: a point each, the line through their mean"
