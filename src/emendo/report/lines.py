"""Line plots as plain data: one panel an SVG, points with intervals, a table of the numbers behind each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7a4b94", "#7a6200")
"""Told apart by people with any colour vision; the shapes of the points differ too."""

SHAPES = ("circle", "square", "diamond", "triangle", "wedge")

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 210, 52, 12, 12, 34


@dataclass(frozen=True)
class Point:
    """A point of a line.

    Attributes:
        x: Where.
        y: How much.
        interval: Of y; None where there is none.
        name: What stands at x, where that is more than its number.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    name: str = ""


@dataclass(frozen=True)
class Line:
    """A line.

    Attributes:
        name: As the legend has it.
        points: By x.
        joined: Whether the points are joined; marks alone otherwise.
    """

    name: str
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: What is plotted.
        lines: At most five.
        unit: Of y.
        x: What x is.
        span: Smallest and largest x, shared by panels that stand together.
        marked: An x that is drawn as a line, and what it is.
        within: Smallest and largest y that are shown; None for those of its own lines.
    """

    title: str
    lines: tuple[Line, ...]
    unit: str
    x: str
    span: tuple[float, float]
    marked: tuple[tuple[float, str], ...] = ()
    within: tuple[float, float] | None = None


def on_one_scale(panels: Sequence[Panel]) -> list[Panel]:
    """The same panels with one scale of y, so that they can be compared by eye."""
    ends = [bounds(panel) for panel in panels]
    within = (min(low for low, _ in ends), max(high for _, high in ends))
    return [replace(panel, within=within) for panel in panels]


def bounds(panel: Panel) -> tuple[float, float]:
    """Smallest and largest y with the intervals, and a little room."""
    if panel.within is not None:
        return panel.within
    values = [value for line in panel.lines for point in line.points for value in (point.y, *(point.interval or ()))]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two ends."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def placed(panel: Panel) -> dict[str, Any]:
    """A panel for the template `lines.html.j2`."""
    low, high = bounds(panel)
    begin, end = panel.span

    def at_x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - begin) / ((end - begin) or 1)

    def at_y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

    return {
        "title": panel.title,
        "unit": panel.unit,
        "x_name": panel.x,
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": _HEIGHT - _BOTTOM,
        "y_ticks": [{"y": at_y(value), "text": f"{value:.4g}"} for value in ticks(low, high)],
        "x_ticks": [
            {"x": at_x(value), "text": f"{value:g}"} for value in ticks(begin, end, 8) if value == round(value)
        ],
        "marked": [{"x": at_x(value), "text": text} for value, text in panel.marked],
        "lines": [
            {
                "name": line.name,
                "colour": COLOURS[number],
                "shape": SHAPES[number],
                "path": " ".join(f"{at_x(p.x):.1f},{at_y(p.y):.1f}" for p in line.points) if line.joined else "",
                "points": [
                    {
                        "x": at_x(point.x),
                        "y": at_y(point.y),
                        "low": None if point.interval is None else at_y(point.interval[0]),
                        "high": None if point.interval is None else at_y(point.interval[1]),
                        "name": f"{line.name}, {panel.x} {point.name or f'{point.x:g}'}: {_value(point)}",
                    }
                    for point in line.points
                ],
            }
            for number, line in enumerate(panel.lines)
        ],
        "table": _table(panel),
    }


def _table(panel: Panel) -> list[dict[str, Any]]:
    """A row for each x, a cell for each line."""
    names: dict[tuple[float, str], None] = {}
    for line in panel.lines:
        names.update({(point.x, point.name or f"{point.x:g}"): None for point in line.points})
    rows = []
    for x, name in sorted(names):
        cells = []
        for line in panel.lines:
            found = [p for p in line.points if p.x == x and (p.name or f"{p.x:g}") == name]
            cells.append(_value(found[0]) if found else "–")
        rows.append({"name": name, "cells": cells})
    return rows


def _value(point: Point) -> str:
    if point.interval is None:
        return f"{point.y:.4g}"
    return f"{point.y:.4g} [{point.interval[0]:.4g}, {point.interval[1]:.4g}]"


def drawn(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines that have points."""
    return tuple(line for line in lines if line.points)
