"""`emendo trace`: where a model keeps a fact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.cli.facts import Format
from emendo.cli.pages import check_place
from emendo.errors import InputError

if TYPE_CHECKING:
    from emendo.tracing import Trace, TraceFact

_OUT, _SHOWN = Path("out/trace"), 8


def trace(
    model: options.Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text with one {} for the subject.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What the fact is about.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="What follows; default: what the model says.")] = None,
    facts: Annotated[Path | None, typer.Option("--facts", help="Facts in any format that `emendo data` reads.")] = None,
    format: Format = "auto",
    n: Annotated[int | None, typer.Option("--n", help="Most facts of --facts, of those that it answers.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="hidden, mlp, attention, hidden-without-mlp or -attention; may be repeated."),
    ] = None,
    corrupt: Annotated[str, typer.Option("--corrupt", help="noise, uniform or swap.")] = "noise",
    noise: Annotated[float, typer.Option("--noise", help="Scale, in standard deviations of embeddings.")] = 3.0,
    samples: Annotated[int, typer.Option("--samples", help="Corrupted runs of each fact.")] = 10,
    metric: Annotated[
        str, typer.Option("--metric", help="probability, log-probability or logit-difference.")
    ] = "probability",
    window: Annotated[int, typer.Option("--window", help="Layers restored around each, for MLP and attention.")] = 10,
    positions: Annotated[
        str, typer.Option("--positions", help="all, or ends: the subject's last token and the text's last.")
    ] = "all",
    lead: Annotated[str, typer.Option("--lead", help="Text in front of every prompt.")] = "",
    any_answer: Annotated[
        bool, typer.Option("--any-answer", help="Trace the fact's answer even if the model says something else.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise.")] = 1,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; an interrupted run continues.")] = _OUT,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show which states of a model carry a fact: causal tracing, exact in every cell."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.report.trace.write import NAME, document, write_trace_report
    from emendo.tracing import PARTS, TraceSettings, forget_parts, packaged_subjects
    from emendo.tracing import trace as run_trace

    settings = TraceSettings(
        kinds=tuple(kind) if kind else ("hidden", "mlp", "attention"),  # type: ignore[arg-type]  # checked there
        corruption=corrupt,  # type: ignore[arg-type]
        noise=noise,
        samples=samples,
        metric=metric,  # type: ignore[arg-type]
        window=window,
        positions=positions,  # type: ignore[arg-type]
        seed=seed,
        lead=lead,
    )
    found = _facts(prompt, subject, answer, facts, format)
    check_place(out, NAME, overwrite=overwrite)
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    result = run_trace(
        lm,
        found,
        settings,
        subjects=packaged_subjects() if facts is None else (),
        any_answer=any_answer,
        skip=facts is not None,
        most=n,
        parts=out / PARTS,
        progress=terminal,
    )
    paths = write_trace_report(out, result)
    forget_parts(out / PARTS)
    show_trace(terminal, result)
    terminal.line(f"Page: {paths['page']}")
    terminal.result({**document(result, result.averages()), "files": paths})


def show_trace(terminal: Terminal, result: Trace) -> None:
    """How a trace was made, its facts and its largest effects."""
    from emendo.report.trace.words import explain, fact_row, peaks

    terminal.table("How it was made", ("", ""), explain(result))
    for fact in result.facts[:_SHOWN]:
        row = fact_row(fact, result.kinds)
        terminal.table(row.pop("fact"), ("", ""), row.items())
    if (more := len(result.facts) - _SHOWN) > 0:
        terminal.line(f"{more} more facts are on the page.")
    for line in peaks(result, result.averages()):
        terminal.line(line)
    if result.skipped:
        terminal.line(f"{len(result.skipped)} facts were not traced; the page says why.")


def _facts(
    prompt: str | None, subject: str | None, answer: str | None, facts: Path | None, format: str
) -> list[TraceFact]:
    """The facts that the options name.

    Raises:
        InputError: None or both are named, or the file cannot be read.
    """
    from emendo.tracing import TraceFact

    if facts is None:
        if prompt is None or subject is None:
            raise InputError("expected a fact to trace: --prompt and --subject, or a file of them (--facts)")
        return [TraceFact(prompt, subject, answer)]
    if prompt is not None or subject is not None or answer is not None:
        raise InputError("--facts and --prompt, --subject, --answer exclude each other: give a file or one fact")
    from emendo.datasets import load_records

    return list(dict.fromkeys(TraceFact.of(record) for record in load_records(str(facts), format=format).records))
