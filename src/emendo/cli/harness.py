"""`emendo harness`: tasks of lm-evaluation-harness on a model, before and after updates from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal

if TYPE_CHECKING:
    from emendo.updates.update import ModelUpdate

_TASK_FOLDER = Path("experiments/harness")
"""Taken where the command runs in a checkout and names no other folder."""


def harness(
    model: options.Model,
    tasks: Annotated[str, typer.Option("--tasks", help="Task names or YAML files, separated by commas.")],
    data: Annotated[Path | None, typer.Option("--data", help="File that a task reads, such as mmlu_sample.")] = None,
    updates: Annotated[
        list[Path] | None, typer.Option("--update", help="Update file to apply; may be repeated, in order.")
    ] = None,
    include: Annotated[
        Path | None,
        typer.Option("--include", help="Folder with further tasks; experiments/harness if there is one."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most items of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num-fewshot", help="Examples in front of each item.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Sequences in one forward pass.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", help="File for the JSON document, with every item.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of examples, sampling tasks and intervals.")] = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure general ability through lm-evaluation-harness; with --update, base against edited model."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.io.writable import check_writable_file
    from emendo.updates.update import ModelUpdate

    loaded = [ModelUpdate.load(path) for path in updates or []]
    if out is not None:
        check_writable_file(out)
    if include is None and _TASK_FOLDER.is_dir():
        include = _TASK_FOLDER
    asked: dict[str, Any] = {
        "tasks": [name.strip() for name in tasks.split(",") if name.strip()],
        "limit": limit,
        "num_fewshot": num_fewshot,
        "include_path": include,
        "data": data,
        "batch_size": batch_size,
        "seed": seed,
    }
    document = _measure(terminal, model, {"device": device, "dtype": dtype, "load_in": load_in}, loaded, asked)
    _show(terminal, document)
    if out is not None:
        from emendo.io.whole_file import write_json

        write_json(out, document)
        terminal.line(f"Every item: {out}")
    terminal.result(document)


def _measure(
    terminal: Terminal, model: str, where: dict[str, Any], updates: list[ModelUpdate], asked: dict[str, Any]
) -> dict[str, Any]:
    """The base model, then with the updates in it; it is rolled back and that is checked."""
    from emendo.editing.session import EditSession
    from emendo.evaluate.harness import compare, general_ability
    from emendo.models import load

    session = EditSession(load(model, progress=terminal, **where), progress=terminal)
    base = general_ability(session.lm, progress=terminal, **asked)
    document: dict[str, Any] = {
        "format": "emendo.evaluate.harness_comparison",
        "version": 1,
        "model": session.base,
        "updates": [update.id for update in updates],
        "base": base,
        "edited": None,
        "comparison": [],
        "rolled_back_bitwise": {},
    }
    if updates:
        for update in updates:
            session.apply(update)
        document["edited"] = edited = general_ability(session.lm, progress=terminal, **asked)
        document["comparison"] = compare(base, edited)
        session.rollback()
        document["rolled_back_bitwise"] = session.verify_rolled_back()
    return document


def _show(terminal: Terminal, document: dict[str, Any]) -> None:
    if document["edited"] is None:
        terminal.table(
            "General ability of the unedited model (lm-evaluation-harness; 95 % bootstrap intervals over items)",
            ("task", "metric", "n", "value", "interval"),
            (
                (name, metric, task["n"], f"{found['value']:.4f}", _bounds(found["interval"]))
                for name, task in document["base"]["tasks"].items()
                for metric, found in task["metrics"].items()
            ),
        )
    else:
        terminal.wide_table(
            f"General ability, base against {len(document['updates'])} update(s) (lm-evaluation-harness; the interval "
            "is the paired 95 % bootstrap of the difference)",
            ("task", "metric", "n", "base", "edited", "difference", "interval", "items up", "items down"),
            [
                (
                    *(row["task"], row["metric"], str(row["n"]), f"{row['base']:.4f}", f"{row['edited']:.4f}"),
                    *(f"{row['difference']:+.4f}", _bounds(row["interval"]), str(row["up"]), str(row["down"])),
                )
                for row in document["comparison"]
            ],
        )
        restored = document["rolled_back_bitwise"]
        equal = sum(restored.values())
        exactly = "restored exactly" if equal == len(restored) else "not restored"
        terminal.line(f"The model in memory is {exactly} ({equal} of {len(restored)} tensors).")
    for name, task in document["base"]["tasks"].items():
        for metric, reason in task["left_out"].items():
            terminal.line(f"Note: {name} also has {metric}, which is left out: {reason}")
    for when in ("base", "edited"):
        if document[when] is not None:
            terminal.line(f"Seconds, {when}: {document[when]['seconds']:.1f}")


def _bounds(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
