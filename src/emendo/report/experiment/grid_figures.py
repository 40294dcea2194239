"""Plots over the axes of an experiment's grid: batch size, layers, a setting, the edits in the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from emendo.report.experiment.axes import FACETS, IN_MODEL, Axis, across_modes, axis_value, label_of, telling
from emendo.report.experiment.figure import BASELINE, MOST_LINES, Figure, Line, Panel, n_text, note, seed_text
from emendo.report.experiment.folder import Cell, number
from emendo.report.experiment.measures import (
    ARGMAX,
    COST,
    END,
    PROBABILITY,
    SCORES,
    SOLVE,
    Measure,
    Value,
    own_figures,
    side_effects,
)
from emendo.report.experiment.text import shortened


def across_mode_figures(done: Sequence[Cell]) -> list[Figure]:
    """All modes over one axis: a batch in one solve beside the same number of edits one by one."""
    places: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in done:
        places[str(axis_value(cell, "model")), str(axis_value(cell, "data"))].append(cell)
    figures: list[Figure | None] = []
    for index, (place, cells) in enumerate(places.items()):
        found = across_modes(cells)
        if found is not None:
            suffix = f"-{index + 1}" if len(places) > 1 else ""
            where = ", ".join(shortened(part, 40) for part in (*place, "all modes"))
            for name, title, group in _SCORE_GROUPS:
                figures.append(
                    _sweep(f"{name}-modes{suffix}", f"{title} against {IN_MODEL}", *found, group, END, where)
                )
    return [figure for figure in figures if figure is not None]


_Group: TypeAlias = tuple[str, str, tuple[Measure, ...]]
"""Name, title and measures of a figure."""

_SCORE_GROUPS: tuple[_Group, ...] = (
    ("scores", "Scores (probability)", PROBABILITY),
    ("argmax", "Scores (argmax)", ARGMAX),
)


def _run_groups() -> list[_Group]:
    return [
        *own_figures(),
        ("side-effects", "Side effects", side_effects()),
        ("solve", "Constraint error, condition and key overlap", SOLVE),
        ("cost", "Time and memory", COST),
    ]


# ---- along an axis of the grid ---------------------------------------------------------------------------------


def sweep_figures(axis: Axis, lines: Mapping[str, Sequence[Cell]], place: str, suffix: str) -> list[Figure]:
    """Scores, side effects, solves and cost along one axis.

    Args:
        axis: That varies.
        lines: Cells by what tells the lines apart.
        place: What all cells have in common.
        suffix: Of the figures' names.
    """
    cells = [cell for line in lines.values() for cell in line]
    by = f"-by-{_slug(axis.label)}{suffix}"
    wanted = [
        (f"{name}-{schedule}", title, group, schedule)
        for schedule in _schedules(cells)
        for name, title, group in _SCORE_GROUPS
    ]
    wanted += [(name, title, group, "final") for name, title, group in _run_groups()]
    figures = [
        _sweep(name + by, f"{title} against {axis.label}", axis, lines, group, schedule, place)
        for name, title, group, schedule in wanted
    ]
    return [figure for figure in figures if figure is not None]


def _sweep(
    name: str,
    title: str,
    axis: Axis,
    lines: Mapping[str, Sequence[Cell]],
    measures: Sequence[Measure],
    schedule: str,
    place: str,
) -> Figure | None:
    """One figure of a group of measures; None where no cell has any of them."""
    drawn = dict(list(lines.items())[:MOST_LINES])
    cells = [cell for line in drawn.values() for cell in line]
    scores = measures[0] in SCORES
    of_base = {measure.key for _, _, own in own_figures() for measure in own}  # they have a value before the edits
    panels = []
    for measure in measures:
        found = [Line(label, _points(axis, line, measure, schedule)) for label, line in drawn.items()]
        if scores or measure.key in of_base:
            found.insert(0, Line(BASELINE, _mean_points(_points(axis, cells, measure, "before"))))
        if any(line.points for line in found if line.label != BASELINE):
            kept = tuple(line for line in found if line.points)
            panels.append(Panel(measure.label, measure.unit, kept, measure.log, measure.bounds))
    if not panels:
        return None
    when = [_SCORED.get(schedule, f"{schedule} scores")] if scores else []
    left_out = [f"{len(lines) - MOST_LINES} more lines in the tables"] if len(lines) > MOST_LINES else []
    return Figure(
        name=name,
        title=title,
        note=note([place, *when, *_measured_text(measures, cells, schedule), seed_text(cells), *left_out]),
        x_label=_x_label(axis),
        panels=tuple(panels),
        ticks=tuple((axis.position(value), shortened(value, 24)) for value in axis.values),
        x_log=axis.log,
        connected=axis.numeric,
    )


def _points(axis: Axis, cells: Iterable[Cell], measure: Measure, schedule: str) -> tuple[tuple[float, Value], ...]:
    found = ((axis.position(axis_value(cell, axis.name)), measure.read(cell, schedule)) for cell in cells)
    return tuple(sorted(((x, value) for x, value in found if value is not None), key=lambda point: point[0]))


def _mean_points(points: Sequence[tuple[float, Value]]) -> tuple[tuple[float, Value], ...]:
    """One point for each x: the mean, without an interval."""
    grouped: dict[float, list[float]] = defaultdict(list)
    for x, value in points:
        grouped[x].append(value.value)
    return tuple((x, Value(sum(values) / len(values))) for x, values in grouped.items())


def overview_figures(cells: Sequence[Cell], place: str, suffix: str) -> list[Figure]:
    """Where nothing but the method varies: every score side by side."""
    figures = []
    names = [name for name in telling(cells) if name not in FACETS]
    for schedule in _schedules(cells):
        measures = [m for m in SCORES if any(m.read(cell, schedule) is not None for cell in cells)]
        lines = [Line(BASELINE, _mean_points(_score_points(cells, measures, "before")))]
        by_label: dict[str, list[Cell]] = defaultdict(list)
        for cell in cells:
            by_label[label_of(cell, [name for name in names if name != "seed"])].append(cell)
        lines += [Line(label, _score_points(same, measures, schedule)) for label, same in by_label.items()]
        lines = [line for line in lines if line.points][: MOST_LINES + 1]
        if measures:
            figures.append(
                Figure(
                    name=f"scores-{schedule}{suffix}",
                    title="Scores, before and after",
                    note=note(
                        [place, f"{schedule} scores", *_measured_text(measures, cells, schedule), seed_text(cells)]
                    ),
                    x_label="score: ES PS NS S compare probabilities, EA PA NA ask for the argmax",
                    panels=(Panel("", "%", tuple(lines), bounds=(-3, 103)),),
                    ticks=tuple((float(i), measure.label) for i, measure in enumerate(measures)),
                    connected=False,
                )
            )
    return figures


def _score_points(cells: Sequence[Cell], measures: Sequence[Measure], schedule: str) -> tuple[tuple[float, Value], ...]:
    found = ((float(i), m.read(cell, schedule)) for i, m in enumerate(measures) for cell in cells)
    return tuple((x, value) for x, value in found if value is not None)


# ---- words -------------------------------------------------------------------------------------------------


def _schedules(cells: Sequence[Cell]) -> list[str]:
    """Final scores, and immediate ones where they are not the same."""

    def values(schedule: str) -> list[float | None]:
        found = [measure.read(cell, schedule) for cell in cells for measure in SCORES]
        return [None if value is None else value.value for value in found]

    present = [name for name in ("final", "immediate") if any(value is not None for value in values(name))]
    if len(present) == 2 and values("immediate") == values("final"):
        return ["final"]
    return present


_SCORED = {END: "scored when the last edit is in (of a batch, before it is taken out)"}


def _x_label(axis: Axis) -> str:
    return {"batch_size": "batch size (edits in one solve)", "layers": "edited layer", "n": "edits"}.get(
        axis.name, axis.label
    )


def _measured_text(measures: Sequence[Measure], cells: Sequence[Cell], schedule: str) -> list[str]:
    """What n counts and how the intervals are made, for every kind of measure that is drawn."""
    counts: dict[str, list[int]] = defaultdict(list)
    spreads: dict[str, list[str]] = defaultdict(list)
    for measure in measures:
        values = [value for cell in cells if (value := measure.read(cell, schedule)) is not None]
        counts[measure.counted] += [value.n for value in values if value.n is not None]
        if values:
            drawn = any(value.low is not None for value in values)
            spreads[measure.spread if drawn else ""].append(measure.label)
    texts = [n_text(found, f"{what} a point") for what, found in counts.items() if found]
    edits = [int(n) for cell in cells if (n := number(cell.plan.get("n"))) is not None]
    if edits and not texts:
        texts.append(n_text(edits, "edits a point"))
    alone = len(spreads) == 1
    texts += [
        f"bars: 95 % intervals{'' if alone else ' of ' + ', '.join(labels)}, {how}"
        for how, labels in spreads.items()
        if how
    ]
    if spreads[""]:
        texts.append("no interval" if alone else f"no interval of {', '.join(spreads[''])}")
    return texts


def _slug(text: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
    return "-".join(part for part in kept.split("-") if part)[:40] or "axis"
