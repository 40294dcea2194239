"""`emendo experiment`: a grid of cells from a YAML file, resumable after any kill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal

if TYPE_CHECKING:
    from emendo.experiments import Experiment, ExperimentConfig
    from emendo.experiments.estimate import Cost
    from emendo.models import EditableModel


def experiment(
    file: Annotated[
        Path,
        typer.Argument(help="The experiment, in YAML; or one of Emendo's by name: a-batch-size-small."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; default: runs/NAME after the file.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Another data set than the file names.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="Its format; see `emendo data --formats`.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Another number of records, for a first try.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the cells and their cost; edit nothing.")
    ] = False,
    workers: options.Workers = None,
    ray: options.Ray = None,
    join: Annotated[
        bool,
        typer.Option("--join", help="Share --out with other processes started with --join, as in a Slurm array."),
    ] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a grid of cells; run it again after a kill, and it goes on where it was."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.experiments import Experiment, find_config, read_config

    options.check_workers(workers, ray, join=join)
    config = _changed(read_config(find_config(file)), data, format, n)
    folder = out or Path("runs") / file.stem
    run = Experiment(
        config.name,
        config.to_dict(),
        config.expand(),
        folder,
        lambda model: _load(model, config, terminal),
        progress=terminal,
    )
    if plan_only:
        _show_plan(terminal, run)
        return
    found = {}
    with options.chosen_workers(workers, ray, join=join) as crew:
        for summary in run.run(crew):
            found[summary["cell"]["id"]] = summary
            terminal.message(one_line(summary))
    # Several workers end cells in any order; the table has that of the grid.
    summaries = [found[cell.id] for cell in run.cells]
    show_cells(terminal, config.name, summaries)
    known = [(summary["cell"], summary.get("resolved")) for summary in summaries]
    _show_differences(terminal, [(cell, resolved) for cell, resolved in known if resolved is not None])
    terminal.line(f"Results: {folder}")
    terminal.result({"experiment": config.name, "folder": str(folder), "cells": summaries})


def _changed(config: ExperimentConfig, data: str | None, format: str | None, n: int | None) -> ExperimentConfig:
    """The configuration with what the command line replaces; batches larger than another n are left out."""
    named = {"data": data, "format": format}
    config = config.model_copy(update={name: value for name, value in named.items() if value is not None})
    return config if n is None else config.with_n(n)


def _load(model: str, config: ExperimentConfig, terminal: Terminal) -> EditableModel:
    from emendo.models import load

    return load(model, device=config.device, dtype=config.dtype, progress=terminal)


def _show_plan(terminal: Terminal, run: Experiment) -> None:
    from emendo.experiments.estimate import total

    planned = run.plan()
    costs = [entry.cost for entry in planned if entry.cost is not None]
    terminal.wide_table(
        f"{run.name}: {len(planned)} cells",
        ("cell", "layers", "schedule", "searches", "shared", "scored", "state"),
        [
            (
                entry.cell.id,
                ", ".join(map(str, _layers(entry.resolved))) or "–",
                entry.cell.schedule,
                *_counts(entry.cost),
                "finished" if entry.finished else "to run",
            )
            for entry in planned
        ],
    )
    _show_differences(terminal, [(entry.cell.to_dict(), entry.resolved) for entry in planned])
    left = total(entry.cost for entry in planned if not entry.finished and entry.cost is not None)
    terminal.line(
        f"To do: {left.edits} edits in {left.batches} batches; {left.searches} target searches "
        f"({left.shared_searches} more are shared); {left.scored + left.base_scored} prompts with a target to score; "
        f"{left.perplexities} perplexities."
    )
    time = run.time_left(planned)
    terminal.line(
        f"About {time}, at the rates of the finished cells."
        if time
        else "No time estimate yet: no cell of this folder is finished."
    )
    terminal.line("Nothing was edited (--plan-only).")
    terminal.result(
        {
            "plan_only": True,
            "experiment": run.name,
            "cells": [
                {
                    "id": entry.cell.id,
                    **entry.cell.to_dict(),
                    "resolved": entry.resolved,
                    "cost": None if entry.cost is None else asdict(entry.cost),
                    "finished": entry.finished,
                }
                for entry in planned
            ],
            "total": asdict(total(costs)),
            "to_do": asdict(left),
            "time_left": time,
        }
    )


def _show_differences(terminal: Terminal, cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """What cells that compare methods differ in beside the method."""
    from emendo.methods.fairness import differences_between

    if not (lines := differences_between(cells)):
        return
    terminal.line("Note: these cells differ in more than the method:", style="yellow")
    for line in lines:
        terminal.line(f"  {line}")
    terminal.line(
        "  `search: exact` or `search: fast` in the file gives all methods one search; layers: [[...]] one place."
    )


def _counts(cost: Cost | None) -> tuple[str, str, str]:
    """Searches, shared searches and scored prompts; dashes for a finished cell whose model was not loaded."""
    if cost is None:
        return "–", "–", "–"
    return str(cost.searches), str(cost.shared_searches), str(cost.scored + cost.base_scored)


def _layers(resolved: Mapping[str, Any]) -> Iterable[int]:
    """Edited layers of a resolved method; a baseline names them beside its settings, if it has any."""
    found: Iterable[int] = resolved["settings"].get("layers") or resolved.get("layers") or ()
    return found


def one_line(summary: Mapping[str, Any]) -> str:
    """What a finished cell found, on one line."""
    cell = summary["cell"]
    if summary["error"] is not None:
        return f"{cell['id']}: {summary['error']['type']}: {summary['error']['message'].splitlines()[0]}"
    parts = []
    for schedule in ("immediate", "final"):
        scores = summary["scores"][schedule]
        if scores is not None:
            compared = [name for name in ("ES", "PS", "NS", "S") if scores[name] is not None]
            # Without a true target nothing is compared: what is left is the argmax.
            shown = " ".join(f"{name} {scores[name]:.1f}" for name in compared or ["EA"])
            parts.append(f"{schedule} {shown}")
    if summary.get("zsre") is not None:  # summaries of older versions have none
        after = summary["zsre"]["after"]
        names = ("efficacy", "paraphrase", "locality", "score")
        parts.append("zsRE " + " ".join(f"{name} {after[name]:.1f}" for name in names if after[name] is not None))
    if summary["perplexity"] is not None:
        parts.append(f"perplexity × {summary['perplexity']['ratio']:.4f}")
    return f"{cell['id']}: " + "; ".join(parts)


def show_cells(terminal: Terminal, name: str, summaries: Iterable[Mapping[str, Any]]) -> None:
    """One row for each cell and schedule."""
    rows = []
    for summary in summaries:
        cell, error = summary["cell"], summary["error"]
        told = (cell["id"], cell["mode"], str(cell["batch_size"]), str(cell["n"]), str(cell["seed"]))
        if error is not None:
            rows.append((*told, "–", error["type"], *[""] * 6))
            continue
        for schedule in ("before", "immediate", "final"):
            scores = summary["scores"][schedule]
            if scores is None:
                continue
            ppl = summary["perplexity"]
            shown = ppl is not None and schedule == ("final" if summary["scores"]["final"] is not None else "immediate")
            rows.append(
                (
                    *told,
                    schedule,
                    *(_figure(scores[metric]) for metric in ("ES", "PS", "NS", "S")),
                    _interval(scores["intervals"]["S"]),
                    f"{ppl['ratio']:.4f}" if shown else "",
                    f"{max((layer['relative_norm'] for layer in summary['layers']), default=0.0):.4f}" if shown else "",
                )
            )
    header = ("cell", "mode", "batch", "n", "seed", "scored", "ES", "PS", "NS", "S", "S, 95 %", "ppl ×", "‖ΔW‖/‖W‖")
    terminal.wide_table(f"{name}: scores in percent", header, rows)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _interval(bounds: list[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
