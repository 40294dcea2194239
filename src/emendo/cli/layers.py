"""`emendo layers`: which layers of a model take an edit, measured, with a causal trace beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.cli.facts import Format
from emendo.cli.pages import check_place

_OUT = Path("out/layers")


def layers(
    model: options.Model,
    facts: Annotated[str, typer.Option("--facts", help="Facts with paraphrases and neighbors, such as CounterFact.")],
    format: Format = "auto",
    n: Annotated[int, typer.Option("--n", help="Facts that are edited and traced.")] = 32,
    chosen: Annotated[
        str | None, typer.Option("--layers", help="Layers to try, such as 1,3,5 or 0-9; default: nine, evenly spread.")
    ] = None,
    window: Annotated[int, typer.Option("--window", help="Also edit this many layers together around each.")] = 0,
    method: options.Method = "emmet",
    setting: options.Set = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Edits written together.")] = 1,
    part: Annotated[str, typer.Option("--part", help="dev, report or all: the subject-disjoint split.")] = "dev",
    only_answered: Annotated[bool, typer.Option("--only-answered", help="Only facts that the model answers.")] = False,
    samples: Annotated[int, typer.Option("--samples", help="Corrupted runs of each fact, in the trace.")] = 10,
    trace_window: Annotated[int, typer.Option("--trace-window", help="Layers restored together, in the trace.")] = 10,
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; an interrupted run continues.")] = _OUT,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the layers that take an edit: a measured sweep, and what a causal trace would have said."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.report.layers import PAGE

    check_place(out, PAGE, overwrite=overwrite)
    from emendo.experiments.layer_study import CHEAP, StudySettings, layer_study

    named = options.parse_layers(chosen)
    settings = StudySettings(
        layers=None if named is None else tuple(named),
        window=window,
        method=method,
        settings=options.parse_settings(setting),
        n=n,
        batch_size=batch_size,
        part=part,  # type: ignore[arg-type]  # checked where records are selected
        only_answered=only_answered,
        seed=seed,
        format=format,
        trace=replace(CHEAP, samples=samples, window=trace_window),
    )
    from emendo.models import load
    from emendo.report.layers import document, write_layers
    from emendo.report.layers.words import explained, traced, verdict
    from emendo.report.layers.write import EXPLAINED, SWEPT, TRACED, swept
    from emendo.tracing import PARTS, forget_parts

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    study = layer_study(lm, facts, settings, folder=out, progress=terminal)
    described = document(study)
    paths = write_layers(out, described, study.trace)
    forget_parts(out / PARTS)
    terminal.wide_table("Sweep (* cannot be told from the best)", SWEPT, swept(described))
    terminal.wide_table("What the trace alone would say", TRACED, traced(described))
    terminal.wide_table("What explains an edit of one fact at one layer", EXPLAINED, explained(described))
    for line in verdict(described):
        terminal.line(line)
    terminal.line(f"Page: {paths['page']}")
    terminal.result({**described, "files": paths})
