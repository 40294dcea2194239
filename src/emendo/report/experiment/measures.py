"""What a cell's summary measures: name, unit, and where the number and its interval are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.evaluate.measure import SIDE_EFFECTS as PANEL_OF_EFFECTS
from emendo.evaluate.measure import Column
from emendo.evaluate.measures import MEASURES
from emendo.report.experiment.folder import Cell, entry, number, rows

SCHEDULES = ("before", "immediate", "final")
"""Moments of scoring: the unedited base, right after each batch, and after the last one."""


END = "end"
"""The final scores, or the immediate ones in modes that restore the model: the model as the last edit left it."""


@dataclass(frozen=True)
class Value:
    """A number with its interval.

    Attributes:
        value: In the measure's unit.
        low: Lower end of the interval; None without one.
        high: Upper end.
        n: Records or positions behind it; None where that does not apply.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Measure:
    """One column of a table, one panel of a plot.

    Attributes:
        key: Unique name.
        label: As tables head it.
        unit: As plots say it; empty for a pure number.
        read: The value of a cell at a schedule; None where the cell has none.
        form: Format specification of the number.
        log: Drawn on a logarithmic axis.
        meaning: One line for people.
        bounds: Of the plotted axis; None fits the data.
        counted: What n counts.
        spread: How its interval is made.
    """

    key: str
    label: str
    unit: str
    read: Callable[[Cell, str], Value | None]
    form: str
    meaning: str
    log: bool = False
    bounds: tuple[float, float] | None = None
    counted: str = ""
    spread: str = ""

    def text(self, value: Value | None) -> str:
        """The number as tables show it."""
        return "–" if value is None else format(value.value, self.form)

    def interval_text(self, value: Value | None) -> str:
        """The interval as tables show it; empty without one."""
        if value is None or value.low is None or value.high is None:
            return ""
        between = "–" if value.low >= 0 else " to "
        return f"{value.low:{self.form}}{between}{value.high:{self.form}}"


def score(cell: Cell, schedule: str, name: str) -> Value | None:
    """A score in percent with its bootstrap interval over records.

    Args:
        cell: Whose.
        schedule: One of `SCHEDULES`, or `END`.
        name: Of the score.
    """
    if schedule == END:
        schedule = "final" if cell.get("scores.final") else "immediate"
    found = cell.get(f"scores.{schedule}")
    if not isinstance(found, dict) or (value := number(found.get(name))) is None:
        return None
    low, high = _bounds(entry(found, f"intervals.{name}"))
    count = _count(found, name)
    return Value(value, low, high, count)


def worst_layer(cell: Cell, name: str) -> Value | None:
    """The largest value among the written layers."""
    found = [value for layer in rows(cell.get("layers")) if (value := number(layer.get(name))) is not None]
    return Value(max(found)) if found else None


def total_seconds(cell: Cell) -> float | None:
    """Seconds of all stages together."""
    stages = cell.get("seconds")
    if not isinstance(stages, dict):
        return None
    known = [value for stage in stages.values() if (value := number(stage)) is not None]
    return sum(known) if known else None


def _count(found: Mapping[str, Any], name: str) -> int | None:
    """Records behind a score: those that it is defined for, else all."""
    count = number(entry(found, f"counts.{name}"))
    count = number(found.get("n")) if count is None else count
    return None if count is None else int(count)


def _bounds(pair: Any) -> tuple[float | None, float | None]:
    if isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2:
        low, high = map(number, pair)
        if low is not None and high is not None:
            return low, high
    return None, None


def _score_measure(name: str, meaning: str) -> Measure:
    return Measure(
        *(name, name, "%", lambda cell, when: score(cell, when, name), ".1f", meaning),
        bounds=(-3, 103),
        counted="records",
        spread="bootstrap over records",
    )


def _at(path: str) -> Callable[[Cell, str], Value | None]:
    """A number of the whole run: it has no schedule, and is shown with the final scores."""

    def read(cell: Cell, schedule: str) -> Value | None:
        value = cell.number(path)
        return None if value is None else Value(value)

    return read


def of_column(column: Column) -> Measure:
    """A column of the table of measures, as reports read it."""

    def read(cell: Cell, schedule: str) -> Value | None:
        at = {"when": "before" if schedule == "before" else "after"}
        value = cell.number(column.value.format(**at))
        if value is None:
            return None
        low, high = _bounds(cell.get(column.interval.format(**at)))
        if low is not None and high is not None:
            low, high = column.scale * low, column.scale * high
        count = cell.number(column.count.format(**at)) if column.count else None
        return Value(column.scale * value, low, high, None if count is None else int(count))

    shown = {name: getattr(column, name) for name in ("meaning", "bounds", "counted", "spread")}
    return Measure(column.key, column.label, column.unit, read, column.form, **shown)


def _of_layers(name: str) -> Callable[[Cell, str], Value | None]:
    return lambda cell, schedule: worst_layer(cell, name)


def _seconds(cell: Cell, schedule: str) -> Value | None:
    value = total_seconds(cell)
    return None if value is None else Value(value)


def _peak(cell: Cell, schedule: str) -> Value | None:
    value = cell.number("peak_bytes")
    return None if value is None else Value(value / 2**30)


PROBABILITY = (
    _score_measure("ES", "edited prompt: the new target is more probable than the true one"),
    _score_measure("PS", "paraphrases: the new target is more probable than the true one"),
    _score_measure("NS", "neighborhood prompts: the true target is still more probable than the new one"),
    _score_measure("S", "harmonic mean of ES, PS and NS"),
)
ARGMAX = (
    _score_measure("EA", "edited prompt: every token of the new target is the most likely one"),
    _score_measure("PA", "paraphrases: every token of the new target is the most likely one"),
    _score_measure("NA", "neighborhood prompts: every token of the true target is the most likely one"),
)
SCORES = (*PROBABILITY, *ARGMAX)


def own_figures() -> list[tuple[str, str, tuple[Measure, ...]]]:
    """Name, title and columns of every figure that a measure of the table has for itself."""
    return [
        (panel.name, panel.title, tuple(map(of_column, panel.columns)))
        for measure in MEASURES.values()
        for panel in measure.panels
        if panel.name != PANEL_OF_EFFECTS
    ]


def shares() -> list[tuple[str, tuple[Measure, ...]]]:
    """Title and columns of every measure that has a table before and one after the edits."""
    return [
        (
            f"{measure.title} {{when}} the edits ({measure.share})",
            tuple(of_column(column) for panel in measure.panels for column in panel.columns),
        )
        for measure in MEASURES.values()
        if measure.rows and measure.panels
    ]


def side_effects() -> tuple[Measure, ...]:
    """What an edit does to everything that it is not about."""
    found = [
        of_column(column)
        for measure in MEASURES.values()
        for panel in measure.panels
        if panel.name == PANEL_OF_EFFECTS
        for column in panel.columns
    ]
    return (_PERPLEXITY, *found)


def effects() -> tuple[Measure, ...]:
    """Measures of the whole run, beside the scores in every table."""
    return (*side_effects(), *WEIGHTS, *COST)


_PERPLEXITY = Measure(
    *("perplexity", "perplexity", "× base", _at("perplexity.ratio"), ".4f"),
    meaning="perplexity of held-out text, edited over base model; 1 is unchanged",
)
WEIGHTS = (
    Measure(
        *("norm", "‖ΔW‖ / ‖W‖", "ratio", _of_layers("relative_norm"), ".4f"),
        meaning="norm of the change over that of the weight, the largest of the written layers",
    ),
    Measure(
        *("cost", "tr ΔCΔᵀ / tr WCWᵀ", "ratio", _of_layers("relative_cost"), ".2e"),
        meaning="change of the layer's output on preserved keys, relative to that output; largest of the layers",
        log=True,
    ),
)
SOLVE = (
    Measure(
        *("constraint_error", "constraint error", "relative", _of_layers("constraint_error"), ".1e"),
        meaning="what the solve leaves of the residuals, relative to them; largest of the layers",
        log=True,
    ),
    Measure(
        *("condition", "condition", "number", _of_layers("condition"), ".1e"),
        meaning="condition number of the dual system; largest of the layers",
        log=True,
    ),
    Measure(
        *("key_overlap", "key overlap", "|cosine|", _of_layers("key_overlap"), ".3f"),
        meaning="mean |cosine| between the keys of two requests of a batch in the metric A⁻¹; largest of the layers",
    ),
    WEIGHTS[0],
)
COST = (
    Measure(*("seconds", "seconds", "s", _seconds, ".1f"), meaning="all stages of the cell together"),
    Measure(*("peak", "peak memory", "GiB", _peak, ".2f"), meaning="largest memory of the process"),
)


def explained(cells: Sequence[Cell]) -> list[Measure]:
    """Every measure that a report explains; what later versions added, where a cell has it."""
    later = [
        of_column(column)
        for measure in MEASURES.values()
        for panel in measure.panels
        for column in panel.columns
        if measure.rows and measure.since >= 2
    ]
    absent = {m.key for m in later if all(m.read(cell, "after") is None for cell in cells)}
    known = [m for _, columns in shares() for m in columns if m.key not in absent]
    return [*SCORES, *known, *effects(), *SOLVE[:3]]
