"""The report as one HTML file that opens without a network: style and pictures are inside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from emendo.io.versions import versions
from emendo.report.experiment import facts as provenance
from emendo.report.experiment import tables
from emendo.report.experiment.axes import label_of, telling
from emendo.report.experiment.drawing import Picture
from emendo.report.experiment.folder import Cell, Experiment
from emendo.report.experiment.measures import explained
from emendo.report.experiment.text import shown
from emendo.report.html import render
from emendo.report.look_inside import LOOKS, pages_beside

OPEN_SAMPLES = 1
"""Cells whose generations stand open on the page; the others unfold."""


def page(experiment: Experiment, pictures: Sequence[Picture]) -> str:
    """The whole page.

    Everything from the folder is text to the page: the template escapes it, and a content policy in the page forbids
    scripts and anything from elsewhere.

    Raises:
        ReportError: jinja2 is not installed.
    """
    names = telling(experiment.cells)
    return render(
        "emendo.report.experiment",
        "experiment.html.j2",
        name=shown(experiment.name, 200),
        complete=all(cell.state == "done" for cell in experiment.cells) and bool(experiment.cells),
        counts={state: len(experiment.in_state(state)) for state in ("done", "failed", "missing", "damaged")},
        total=len(experiment.cells),
        facts=provenance.facts(experiment),
        configuration=provenance.configuration(experiment),
        warnings=provenance.warnings_of(experiment),
        unfinished=tables.state_table(experiment),
        scores=tables.score_tables(experiment),
        plots=[_plot(picture) for picture in pictures],
        cells=[_cell(cell, names) for cell in experiment.cells if cell.summary],
        open_samples=OPEN_SAMPLES,
        measures=explained(experiment.done),
        looks=LOOKS,
        pages=pages_beside(experiment.folder),
        emendo=versions()["emendo"],
    )


def _plot(picture: Picture) -> dict[str, str]:
    return {
        "name": picture.figure.name,
        "title": picture.figure.title,
        "note": picture.figure.note,
        # As an image, not as markup: a picture cannot run anything, and its element names stay its own.
        "source": "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode("ascii"),
    }


def _cell(cell: Cell, names: Sequence[str]) -> dict[str, Any]:
    kept = [cell.get(f"scores.{when}.notes") for when in ("immediate", "final")]
    notes = [note for found in kept if isinstance(found, list) for note in found]
    return {
        "id": shown(cell.id, 120),
        "label": label_of(cell, names),
        "state": cell.state,
        "problem": None if cell.problem is None else shown(cell.problem, 4000),
        "notes": [shown(note) for note in dict.fromkeys(map(str, notes))],
        "samples": tables.samples_of(cell),
        "tables": [
            table
            for table in (tables.layers_of(cell), tables.seconds_of(cell), tables.settings_of(cell))
            if table is not None
        ],
    }
