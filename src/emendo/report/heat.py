"""Heat maps as plain data: one colour scale for all that stand together, zero white, negatives in another hue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_POSITIVE, _NEGATIVE, _ABSENT = (8, 48, 107), (166, 54, 3), (225, 225, 225)
_CELL = 18, 22

_CHARACTER = 7
"""Width of a character of the labels, which stand in one width."""

_LONGEST, _LONGEST_COLUMN = 22, 14
"""Characters of a label that are drawn; a cell's own words have the whole of it."""


@dataclass(frozen=True)
class Heat:
    """One grid of numbers.

    Attributes:
        title: What the numbers are.
        rows: Label of every row, and whether it belongs to the subject.
        values: Rows × columns; None where not asked for.
        column: What a column is.
        labels: Of the columns; their numbers unless given.
    """

    title: str
    rows: tuple[tuple[str, bool], ...]
    values: tuple[tuple[float | None, ...], ...]
    column: str = "layer"
    labels: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Label of every column."""
        return self.labels or tuple(str(number) for number in range(len(self.values[0])))


def scale_of(heats: Sequence[Heat]) -> tuple[float, float]:
    """Smallest and largest value, zero among them."""
    found = [value for heat in heats for row in heat.values for value in row if value is not None]
    return min(0.0, *found), max(0.0, *found)


def colour(value: float | None, scale: tuple[float, float]) -> str:
    """The colour of a value: white at zero; both hues reach their full depth at the same distance from it."""
    if value is None:
        return _hex(_ABSENT)
    most = max(-scale[0], scale[1]) or 1.0
    share = min(1.0, abs(value) / most)
    # The root lets small effects be seen beside large ones; the bar of the legend has the same steps.
    depth = math.sqrt(share)
    full = _POSITIVE if value >= 0 else _NEGATIVE
    return _hex(tuple(round(255 + (part - 255) * depth) for part in full))


def legend(scale: tuple[float, float], steps: int = 41) -> list[tuple[float, str]]:
    """Values from the smallest to the largest, and their colours."""
    low, high = scale
    values = [low + (high - low) * i / (steps - 1) for i in range(steps)]
    return [(value, colour(value, scale)) for value in values]


def shown_token(text: str) -> str:
    """A token that can be read: its spaces and line breaks are visible."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "·"


def shortened(text: str, most: int) -> str:
    """A label of at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def values_of(grid: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    """Rows of numbers; None where a cell is not finite."""
    return tuple(tuple(float(v) if math.isfinite(v) else None for v in row) for row in grid)


def group_of(heats: Sequence[Heat]) -> dict[str, Any]:
    """Heat maps under one scale, placed for the template `heat.html.j2`."""
    scale = scale_of(heats)
    steps = legend(scale)
    return {
        "heats": [_placed(heat, scale) for heat in heats],
        "low": f"{scale[0]:+.3f}",
        "high": f"{scale[1]:+.3f}",
        "zero": 100 * (0 - scale[0]) / ((scale[1] - scale[0]) or 1),
        "steps": [shade for _, shade in steps],
    }


def _placed(heat: Heat, scale: tuple[float, float]) -> dict[str, Any]:
    width, height = _CELL
    turned = any(len(label) > 3 for label in heat.columns)  # longer than a cell is wide
    labels = [shortened(label, _LONGEST_COLUMN) for label in heat.columns]
    rows = [shortened(text, _LONGEST) for text, _ in heat.rows]
    left = _CHARACTER * (2 + max(len(text) + subject for text, (_, subject) in zip(rows, heat.rows, strict=True)))
    top = _CHARACTER * (2 + max(map(len, labels))) if turned else 20
    cells = [
        {
            "x": left + width * column,
            "y": top + height * row,
            "fill": colour(value, scale),
            "name": f"{heat.rows[row][0]}, {heat.column} {heat.columns[column]}: {_number(value)}",
        }
        for row, values in enumerate(heat.values)
        for column, value in enumerate(values)
    ]
    every = 1 if turned else max(1, -(-len(labels) // 15))
    return {
        "title": heat.title,
        "cells": cells,
        "cell": {"width": width, "height": height},
        "rows": [
            {"short": short, "subject": subject, "y": top + height * (row + 0.68)}
            for row, (short, (_, subject)) in enumerate(zip(rows, heat.rows, strict=True))
        ],
        "ticks": [{"x": left + width * (n + 0.5), "text": labels[n]} for n in range(0, len(labels), every)],
        "turned": turned,
        "tick": top - 7,
        "label": left - _CHARACTER,
        "width": left + width * len(labels) + 8,
        "height": top + height * len(rows) + 4,
        "best": _best(heat),
        "table": [
            {"text": text, "values": [_number(value) for value in values]}
            for (text, _), values in zip(heat.rows, heat.values, strict=True)
        ],
        "columns": heat.columns,
    }


def _best(heat: Heat) -> str:
    found = [(v, r, c) for r, row in enumerate(heat.values) for c, v in enumerate(row) if v is not None]
    value, row, column = max(found)
    return f"largest {value:+.3f} at {heat.rows[row][0]}, {heat.column} {heat.columns[column]}"


def _number(value: float | None) -> str:
    return "not asked for" if value is None else f"{value:+.4f}"


def _hex(parts: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*parts)
