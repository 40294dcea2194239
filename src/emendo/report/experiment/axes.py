"""Which axes of the grid vary, and how cells line up along one of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.report.experiment.folder import Cell, entry
from emendo.report.experiment.text import shortened

FACETS = ("model", "data", "mode")
"""Axes that are never mixed in one plot."""

REPEATS = ("seed",)
"""Axes whose cells repeat one another; they are points of one line."""

IN_MODEL = "edits in the model"
"""How many edits a record is scored among: those of its batch where the model is restored, else all. Not in the plan,
but common to all modes."""

_FIRST = ("batch_size", "layers", "n")
_NAMES = {"batch_size": "batch size", "n": "edits", "layers": "layer", "part": "split"}
_NOT_AXES = ("id", "settings", "measures")
_RESTORING = ("single", "batch")


@dataclass(frozen=True)
class Axis:
    """An axis of the grid along which cells are compared.

    Attributes:
        name: In the cell's plan; a setting is ``settings.NAME``.
        label: As plots say it.
        values: Every value, in drawing order.
        numeric: Values are numbers, drawn to scale; else categories side by side.
        log: Numbers that span so much that a logarithmic axis reads better.
    """

    name: str
    label: str
    values: tuple[Any, ...]
    numeric: bool
    log: bool

    def position(self, value: Any) -> float:
        """Where a value stands on the axis."""
        return float(value) if self.numeric else float(self.values.index(value))


def axis_value(cell: Cell, axis: str) -> Any:
    """A cell's value on an axis, as something that can be compared and shown: a number or a text."""
    if axis.startswith("settings."):
        name = axis.removeprefix("settings.")
        given = entry(cell.plan, "settings")
        value = given.get(name) if isinstance(given, Mapping) else None
        resolved = cell.get("resolved.settings")
        if value is None and isinstance(resolved, Mapping):
            value = resolved.get(name)
        return "default" if value is None else _plain(value)
    if axis == IN_MODEL:
        axis = "batch_size" if cell.plan.get("mode") in _RESTORING else "n"
    value = cell.plan.get(axis)
    if axis == "layers":
        return layers_text(value)
    return _plain(value)


def layers_text(value: Any) -> Any:
    """Layers as ``--layers`` reads them; a single one is its number."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(layer, int) for layer in value):
        if len(value) == 1:
            return value[0]
        if list(value) == list(range(value[0], value[-1] + 1)):
            return f"{value[0]}-{value[-1]}"
        return ",".join(map(str, value))
    return "preset" if value is None else _plain(value)


def varying(cells: Sequence[Cell]) -> list[str]:
    """Axes on which the cells differ: batch size and layers first, then settings as they come."""
    names = ["model", "data", "mode", "method", *_FIRST, "seed"]
    for cell in cells:
        names += [name for name in cell.plan if name not in _NOT_AXES]
        given = entry(cell.plan, "settings")
        names += [f"settings.{name}" for name in given] if isinstance(given, Mapping) else []
    return [name for name in dict.fromkeys(names) if len({axis_value(cell, name) for cell in cells}) > 1]


def telling(cells: Sequence[Cell]) -> list[str]:
    """Axes that tell the cells apart: those that vary, less those that only follow another one."""
    kept: list[str] = []
    for name in varying(cells):
        if not any(_follows(cells, name, other) for other in kept):
            kept.append(name)
    return kept


def sweeps(cells: Sequence[Cell]) -> list[tuple[Axis, dict[str, list[Cell]]]]:
    """Axes along which at least one line has two points, each with its lines by label.

    An axis that only follows another one (as the number of edits follows the batch size) is not drawn a second time.
    """
    names = [name for name in varying(cells) if name not in (*FACETS, *REPEATS, "method")]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    found: list[tuple[Axis, dict[str, list[Cell]]]] = []
    for name in names:
        if any(_same_partition(cells, name, axis.name) for axis, _ in found):
            continue
        lines = _lines(cells, name)
        if any(len({axis_value(cell, name) for cell in line}) > 1 for line in lines.values()):
            found.append((_axis(cells, name), lines))
    return found


def across_modes(cells: Sequence[Cell]) -> tuple[Axis, dict[str, list[Cell]]] | None:
    """Lines of all modes over the edits that are in the model; None where there is but one mode, or one number."""
    if len({axis_value(cell, "mode") for cell in cells}) < 2 or len({axis_value(cell, IN_MODEL) for cell in cells}) < 2:
        return None
    names = [name for name in varying(cells) if name not in ("batch_size", "n", "schedule", *REPEATS)]
    lines: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        mode = str(axis_value(cell, "mode"))
        size = f" by {axis_value(cell, 'batch_size')}" if mode == "sequential-batched" else ""
        lines[f"{label_of(cell, names)}, {mode}{size}"].append(cell)
    return _axis(cells, IN_MODEL), dict(lines)


def label_of(cell: Cell, names: Sequence[str]) -> str:
    """A cell named by its method and its values on some axes."""
    parts = [str(axis_value(cell, "method"))]
    for name in names:
        if name not in ("method", *FACETS):
            parts.append(f"{axis_label(name)} {axis_value(cell, name)}")
    return shortened(", ".join(parts), 60)


def axis_label(name: str) -> str:
    """An axis as plots and tables say it."""
    return _NAMES.get(name, name.removeprefix("settings."))


def _lines(cells: Sequence[Cell], name: str) -> dict[str, list[Cell]]:
    """Cells that differ on this axis alone (and on repeats), by what tells the lines apart."""
    others = [
        other
        for other in varying(cells)
        if other not in (name, *REPEATS) and (other == "method" or not _follows(cells, other, name))
    ]
    lines: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        lines[label_of(cell, others)].append(cell)
    return dict(lines)


def _follows(cells: Sequence[Cell], name: str, leader: str) -> bool:
    """Whether the value on one axis is known from the value on another."""
    seen: dict[Any, Any] = {}
    return all(
        seen.setdefault(axis_value(cell, leader), axis_value(cell, name)) == axis_value(cell, name) for cell in cells
    )


def _same_partition(cells: Sequence[Cell], one: str, other: str) -> bool:
    return _follows(cells, one, other) and _follows(cells, other, one)


def _axis(cells: Sequence[Cell], name: str) -> Axis:
    values = list(dict.fromkeys(axis_value(cell, name) for cell in cells))
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numeric:
        values.sort()
    log = numeric and min(values) > 0 and max(values) / min(values) >= 8
    return Axis(name, axis_label(name), tuple(values), numeric, log)


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, (int, float, str)):
        return "–" if value is None else value
    if isinstance(value, Mapping):
        for name in ("name", "id", "path", "file"):
            if isinstance(value.get(name), str):
                return value[name]
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
