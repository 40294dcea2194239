"""`emendo report`: an experiment's folder as a page, a Markdown file and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that `emendo experiment` or `emendo eval --out` wrote.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report; DIR itself without it.")] = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make report.html, report.md and plots/ of an experiment, finished or not."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.report.experiment import read_experiment, write_report

    experiment = read_experiment(folder)
    written = write_report(folder, out=out, progress=terminal)
    states = {state: len(experiment.in_state(state)) for state in ("done", "failed", "missing", "damaged")}
    terminal.line(f"Cells: {', '.join(f'{n} {state}' for state, n in states.items() if n or state == 'done')}")
    for cell in experiment.cells:
        if cell.state in ("failed", "damaged"):
            terminal.line(f"  {cell.id}: {cell.state}: {cell.problem}")
    for kind, path in written.items():
        terminal.line(f"{kind.capitalize()}: {path}")
    terminal.result({"cells": states, "files": {kind: str(path) for kind, path in written.items()}})
