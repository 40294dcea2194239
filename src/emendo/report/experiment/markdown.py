"""The report as Markdown: the same tables as the page, with links to the plots beside it."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.report.experiment import facts as provenance
from emendo.report.experiment import tables
from emendo.report.experiment.axes import label_of, telling
from emendo.report.experiment.figure import Figure
from emendo.report.experiment.folder import Cell, Experiment
from emendo.report.experiment.measures import explained
from emendo.report.experiment.tables import Entry, Table
from emendo.report.experiment.text import markdown, shown
from emendo.report.look_inside import pages_beside

PLOTS = "plots"
"""Folder of the PNG files, beside the report."""


def markdown_text(experiment: Experiment, figures: Sequence[Figure]) -> str:
    """The whole report."""
    done, total = len(experiment.done), len(experiment.cells)
    lines = [f"# {markdown(experiment.name, 200)}", ""]
    if done < total or not total:
        lines += [f"**Unfinished: {done} of {total} cells have results.**", ""]
    lines += [f"* {markdown(warning)}" for warning in provenance.warnings_of(experiment)]
    lines += ["", "## What was run", ""]
    lines += [f"* **{markdown(name)}**: {markdown(value, 2000)}" for name, value in provenance.facts(experiment)]
    lines += ["", *_table(tables.state_table(experiment)), "## Scores", ""]
    for table in tables.score_tables(experiment):
        lines += _table(table)
    lines += ["## Plots", ""]
    for figure in figures:
        lines += [f"![{markdown(figure.title)}]({PLOTS}/{figure.name}.png)", "", markdown(figure.note), ""]
    lines += ["## Cells", ""]
    names = telling(experiment.cells)
    for cell in experiment.cells:
        if cell.summary:
            lines += _cell(cell, names)
    lines += ["## What the columns mean", ""]
    lines += [f"* **{markdown(m.label)}**: {markdown(m.meaning)}" for m in explained(experiment.done)]
    if pages := pages_beside(experiment.folder):
        lines += ["", "## Look inside", "", *(f"* [{way}]({way}): {look.what}" for look, way in pages)]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell, names: Sequence[str]) -> list[str]:
    lines = [f"### {markdown(label_of(cell, names))}", "", f"Cell `{shown(cell.id, 120).replace('`', '')}`", ""]
    if cell.problem is not None:
        lines += [f"**{cell.state}**: {markdown(cell.problem, 4000)}", ""]
    for table in (tables.samples_of(cell), tables.layers_of(cell), tables.seconds_of(cell), tables.settings_of(cell)):
        lines += _table(table, level=4)
    return lines


def _table(table: Table | None, level: int = 3) -> list[str]:
    if table is None:
        return []

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    heads = [markdown(f"{c.label} ({c.unit})" if c.unit else c.label) for c in table.columns]
    body = [line([_entry(entry) for entry in row]) for row in table.rows]
    note = [table.note, ""] if table.note else []
    return [f"{'#' * level} {markdown(table.title)}", "", line(heads), line(["---"] * len(heads)), *body, "", *note]


def _entry(entry: Entry) -> str:
    text = markdown(entry.text)
    return f"{text} [{entry.interval}]" if entry.interval else text
