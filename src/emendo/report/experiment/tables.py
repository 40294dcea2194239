"""The report's tables: the same cells for the page and for Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emendo.evaluate.measures import MEASURES
from emendo.report.experiment.axes import axis_value, label_of, telling
from emendo.report.experiment.folder import Cell, Experiment, number, rows
from emendo.report.experiment.measures import SCORES, Measure, effects, shares
from emendo.report.experiment.text import shown


@dataclass(frozen=True)
class Entry:
    """One cell of a table: what it says and, if there is one, its interval."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Column:
    """Head of a column, with what it means."""

    label: str
    meaning: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a heading.

    Attributes:
        title: Heading.
        columns: Heads; the first names the row.
        rows: Entries, one for each column.
        note: A line under it; empty without one.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""


_LEADS = (Column("cell"), Column("n", "records scored"), Column("seed"))


def _base_effects() -> list[tuple[str, str, str]]:
    """Label, path and form of every number that the unedited model has for itself."""
    columns = (column for measure in MEASURES.values() for panel in measure.panels for column in panel.columns)
    own = [(column.label, column.base, column.form) for column in columns if column.base]
    return [("perplexity", "perplexity.before", ".2f"), *own]


def score_tables(experiment: Experiment) -> list[Table]:
    """One table for each mode and schedule."""
    done = experiment.done
    names = [name for name in telling(done) if name not in ("mode", "seed", "n")]
    by_mode: dict[str, list[Cell]] = defaultdict(list)
    for cell in done:
        by_mode[str(axis_value(cell, "mode"))].append(cell)
    tables = [_before_table(done)] if any(cell.get("scores.before") for cell in done) else []
    for mode, cells in by_mode.items():
        for schedule in ("immediate", "final"):
            if any(cell.get(f"scores.{schedule}") for cell in cells):
                tables.append(_score_table(mode, schedule, cells, names))
    return tables + _share_tables(done, [*names, "mode"])


def _share_tables(done: Sequence[Cell], names: Sequence[str]) -> list[Table]:
    """Measures of the table with a mean over records, before and after, where they were asked for."""
    tables = []
    for title, columns in shares():
        for when in ("before", "after"):
            measures = _used(columns, done, when)
            asked = [cell for cell in done if any(measure.read(cell, when) is not None for measure in measures)]
            body = [
                (Entry(_name(cell, names)), *_counted(cell, "before"), *(_entry(m, cell, when) for m in measures))
                for cell in asked
            ]
            if body:
                note = "Under a share: 95 % bootstrap interval over records."
                heads = (*_LEADS, *map(_column, measures))
                tables.append(Table(title.format(when=when), heads, tuple(body), note))
    return tables


def _before_table(cells: Sequence[Cell]) -> Table:
    """The base model on the records of the cells; cells on the same records have one row."""
    extra = [(Column(name, "of the base model"), _base_effect(path, form)) for name, path, form in _base_effects()]
    scored = [cell for cell in cells if cell.get("scores.before")]
    rows_of = dict.fromkeys(_base_row(cell, [read for _, read in extra]) for cell in scored)
    columns = (*_LEADS, *map(_column, SCORES), *(column for column, _ in extra))
    return Table("Before any edit (the base model)", columns, tuple(rows_of), note=_confidence(scored, "before"))


_SCORED = {"immediate": "right after each batch", "final": "after the last batch"}


def _score_table(mode: str, schedule: str, cells: Sequence[Cell], names: Sequence[str]) -> Table:
    scored = [cell for cell in cells if cell.get(f"scores.{schedule}")]
    # Perplexity, KL and the like are measured on the model as the run leaves it.
    last = schedule == "final" or not any(cell.get("scores.final") for cell in cells)
    measures = (*SCORES, *(_used(effects(), scored, schedule) if last else ()))
    body = (
        (Entry(_name(cell, names)), *_counted(cell, schedule), *(_entry(m, cell, schedule) for m in measures))
        for cell in scored
    )
    return Table(
        f"{mode.capitalize()} edits, scored {_SCORED[schedule]}",
        (*_LEADS, *map(_column, measures)),
        tuple(body),
        note=_confidence(scored, schedule),
    )


def _base_row(cell: Cell, effects: Sequence[Callable[[Cell], str]]) -> tuple[Entry, ...]:
    place = [shown(axis_value(cell, name), 60) for name in ("model", "data")]
    return (
        Entry(", ".join(place)),
        *_counted(cell, "before"),
        *(_entry(measure, cell, "before") for measure in SCORES),
        *(Entry(read(cell)) for read in effects),
    )


def _name(cell: Cell, names: Sequence[str]) -> str:
    label = label_of(cell, names)
    place = [shown(axis_value(cell, name), 40) for name in ("mode", "model", "data") if name in names]
    return ", ".join([label, *place])


def _counted(cell: Cell, schedule: str) -> tuple[Entry, Entry]:
    count = cell.number(f"scores.{schedule}.n")
    return Entry("–" if count is None else f"{int(count):,}"), Entry(shown(axis_value(cell, "seed"), 20))


def _entry(measure: Measure, cell: Cell, schedule: str) -> Entry:
    value = measure.read(cell, schedule)
    return Entry(measure.text(value), measure.interval_text(value))


def _used(measures: Sequence[Measure], cells: Sequence[Cell], schedule: str) -> tuple[Measure, ...]:
    """Measures that some cell has."""
    return tuple(m for m in measures if any(m.read(cell, schedule) is not None for cell in cells))


def _column(measure: Measure) -> Column:
    return Column(measure.label, measure.meaning, measure.unit)


def _base_effect(path: str, form: str) -> Callable[[Cell], str]:
    def read(cell: Cell) -> str:
        value = cell.number(path)
        return "–" if value is None else format(value, form)

    return read


def _confidence(cells: Sequence[Cell], schedule: str) -> str:
    levels = {cell.number(f"scores.{schedule}.bootstrap.confidence") for cell in cells} - {None}
    if len(levels) != 1:
        return "Under a score: bootstrap interval over records, if there is one."
    return f"Under a score: {levels.pop():.0%} bootstrap interval over records."


# ---- one cell ---------------------------------------------------------------------------------------------------

_LAYER_COLUMNS = (
    ("layer", "layer", "d"),
    ("relative_norm", "‖ΔW‖/‖W‖", ".4f"),
    ("relative_cost", "tr(ΔCΔᵀ)/tr(WCWᵀ)", ".2e"),
    ("constraint_error", "constraint error", ".1e"),
    ("condition", "condition", ".1e"),
    ("key_overlap", "key overlap", ".3f"),
)


def layers_of(cell: Cell) -> Table | None:
    """What the edits did to each layer."""
    found = rows(cell.get("layers"))
    if not found:
        return None
    body = tuple(tuple(_figure(number(layer.get(field)), form) for field, _, form in _LAYER_COLUMNS) for layer in found)
    return Table("Layers", tuple(Column(label) for _, label, _ in _LAYER_COLUMNS), body)


def samples_of(cell: Cell) -> Table | None:
    """What the model says before and after."""
    found = rows(cell.get("samples"))
    if not found:
        return None
    fields = ("kind", "prompt", "wanted", "before", "after")
    body = tuple(tuple(_text(row.get(field)) for field in fields) for row in found)
    return Table("Before and after (greedy generation)", tuple(map(Column, ("", *fields[1:]))), body)


def settings_of(cell: Cell) -> Table | None:
    """Every resolved setting, with where it comes from."""
    settings, origins = cell.get("resolved.settings"), cell.get("resolved.origins")
    if not isinstance(settings, dict):
        return None
    known = origins if isinstance(origins, dict) else {}
    body = tuple((_text(name), _text(value), _text(known.get(name))) for name, value in settings.items())
    return Table("Settings", (Column("setting"), Column("value"), Column("origin")), body)


def seconds_of(cell: Cell) -> Table | None:
    """Seconds of each stage."""
    stages = cell.get("seconds")
    if not isinstance(stages, dict) or not stages:
        return None
    body = tuple((_text(stage), _figure(number(seconds), ".1f")) for stage, seconds in stages.items())
    return Table("Seconds by stage", (Column("stage"), Column("seconds")), body)


def state_table(experiment: Experiment) -> Table | None:
    """Cells that are not done, with the reason; None where all are."""
    left = [cell for cell in experiment.cells if cell.state != "done"]
    if not left:
        return None
    names = telling(experiment.cells)
    body = tuple(
        (_text(cell.id), _text(label_of(cell, names)), Entry(cell.state), _text(cell.problem)) for cell in left
    )
    columns = (Column("cell"), Column("what"), Column("state"), Column("why"))
    return Table("Cells without results", columns, body)


def _figure(value: float | None, form: str) -> Entry:
    if value is None:
        return Entry("–")
    return Entry(format(int(value) if form == "d" else value, form))


def _text(value: object) -> Entry:
    return Entry("–" if value is None else shown(value))
