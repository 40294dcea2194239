"""`emendo eval`: one method on one data set in one mode, scored against the true base model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import facts, options
from emendo.cli.catalog import show_method
from emendo.cli.console import STYLES, Terminal
from emendo.cli.experiment import one_line
from emendo.errors import ExperimentError
from emendo.io import strict_json
from emendo.io.printable import quoted
from emendo.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from emendo.experiments import Cell, Experiment, Measures
    from emendo.methods import Method


MOST_RECORDS = 200
"""Edited where --n is left out; fewer where there are fewer."""


def evaluate(
    model: options.Model,
    data: Annotated[str, typer.Option("--data", help="File or data set of records.")],
    format: facts.Format = "auto",
    n: Annotated[
        int | None, typer.Option("--n", help=f"Records to edit [default: all, at most {MOST_RECORDS}].")
    ] = None,
    method: options.Method = DEFAULT_METHOD,
    mode: Annotated[str, typer.Option("--mode", help="single, batch, sequential or sequential-batched.")] = "batch",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Edits per step [default: all; 1 in sequential and single].")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="When to score: immediate, final or both [default: by mode].")
    ] = None,
    part: Annotated[str, typer.Option("--part", help="all, dev or report: a split by subject.")] = "all",
    only_answered: Annotated[
        bool, typer.Option("--only-answered", help="Only facts whose true target the base model answers (argmax).")
    ] = False,
    layers: options.Layers = None,
    settings: options.Set = None,
    measure: Annotated[
        list[str] | None,
        typer.Option("--measure", help="Also measure this, such as generated or shift; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed (selection, contexts, sampled text).")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results, resumable.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print every value and the cost; edit nothing.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Edit n records and score them, their paraphrases and neighbors, before and after."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    chosen_layers, chosen_settings = options.parse_layers(layers), options.parse_settings(settings)
    from emendo.io.writable import check_writable
    from emendo.methods import check_named, spelled_out

    chosen = check_named(method, chosen_settings)
    if out is not None:
        check_writable(out)
    name, values, own_layers = spelled_out(method, chosen_settings, chosen_layers)
    cell = _cell(
        model=model,
        data=data,
        format=format,
        n=n if n is not None else MOST_RECORDS if only_answered else _count(data, format, part),
        method=name,
        mode=mode,
        batch_size=batch_size,
        schedule=schedule,
        part=part,
        only_answered="argmax" if only_answered else None,
        layers=own_layers,
        settings=values,
        seed=seed,
        measures=_measures(measure or [], out),
    )
    _check_records(cell, chosen)
    from emendo.experiments import Experiment
    from emendo.models import load

    with _folder(out) as folder:
        config = {"cell": cell.to_dict(), "device": device, "dtype": dtype}
        config |= {} if load_in is None else {"load_in": load_in}
        run = Experiment(
            f"eval {cell.id}",
            config,
            [cell],
            folder,
            lambda name: load(name, device=device, dtype=dtype, load_in=load_in, progress=terminal),
            progress=terminal,
        )
        if plan_only:
            _show_plan(terminal, run)
            return
        summary = next(iter(run.run()))
    _show_verdict(terminal, summary, out)
    terminal.line(one_line(summary))
    show_summary(terminal, summary)
    if out is not None:
        terminal.line(f"Results: {out}")
    terminal.result(summary)
    if summary["error"] is not None:
        raise typer.Exit(1)


def _count(data: str, format: str, part: str) -> int:
    """How many records are edited where nobody says it."""
    from emendo.datasets import PARTS, load_records, select

    if part not in PARTS:
        return MOST_RECORDS  # refused with the other options
    found = select(load_records(data, format=format).records, part=part)
    return min(MOST_RECORDS, len({record.case or number for number, record in enumerate(found)}))


def _cell(**values: Any) -> Cell:
    """The cell that the options name.

    Raises:
        ExperimentError: An unknown mode, schedule or part, or values that do not go together.
    """
    from emendo.arguments.suggest import unknown_name
    from emendo.datasets import PARTS
    from emendo.experiments import MODES, SCHEDULES, Cell, default_batch_size, default_schedule

    if values["n"] < 1:
        raise ExperimentError(f"there is nothing to edit: expected at least 1 record, found {values['n']} (--n)")
    known = {"mode": MODES, "schedule": SCHEDULES, "part": PARTS}
    for name, names in known.items():
        if values[name] is not None and values[name] not in names:
            raise ExperimentError(unknown_name(name, values[name], names, f"--{name}"))
    values["schedule"] = values["schedule"] or default_schedule(values["mode"])
    if values["batch_size"] is None:
        values["batch_size"] = default_batch_size(values["mode"], values["n"])
    return Cell(**values)


def _check_records(cell: Cell, method: Method) -> None:
    """Read the data before the model is loaded and anything is written, and refuse what can be refused without it.

    Raises:
        InputError: The data cannot be read, or does not have the records that the cell is about.
    """
    from emendo.datasets import load_records
    from emendo.experiments.data import Source, select_records
    from emendo.experiments.questions import check_measures

    loaded = load_records(cell.data, format=cell.format)
    if cell.only_answered is not None:
        return  # which records these are only the model can tell
    source = Source(cell.data, loaded.records, len(loaded.rejected), sha256="")
    records = select_records(source, cell, lambda found, _: list(found))
    method.evaluation_prompts(records)
    check_measures(cell, records)


def _measures(names: Sequence[str], out: Path | None) -> Measures:
    """The usual measures, what is said among them, and those that are named."""
    from emendo.arguments.suggest import unknown_name
    from emendo.evaluate.measures import chosen
    from emendo.experiments import Measures

    for name in names:
        if name not in chosen():
            raise ExperimentError(unknown_name("measure", name, list(chosen()), "--measure"))
    usual = [] if out is not None and _begun_without_said(out) else ["said"]
    wanted: dict[str, Any] = dict.fromkeys([*names, *usual], True)
    return Measures(**wanted)


def _begun_without_said(out: Path) -> bool:
    """Whether a folder's run was begun by a version that did not measure what is said: it goes on as it began."""
    try:
        measures = strict_json.loads((out.expanduser() / "experiment.json").read_text())["config"]["cell"]["measures"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(measures, dict) and "said" not in measures


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that is gone afterwards."""
    if out is not None:
        yield out.expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="emendo-eval-") as folder:
        yield Path(folder)


def _show_plan(terminal: Terminal, run: Experiment) -> None:
    from dataclasses import asdict

    (planned,) = run.plan()
    cell, method, cost = planned.cell, planned.resolved, planned.cost
    show_method(terminal, cell.id, method)
    terminal.line(
        f"{cost.edits} edits in {cost.batches} batches; {cost.searches} target searches; "
        f"{cost.scored + cost.base_scored} prompts with a target to score; {cost.perplexities} perplexities."
        if cost is not None
        else "Finished: nothing is left to do."
    )
    terminal.line("Nothing was edited (--plan-only).")
    terminal.result(
        {
            "plan_only": True,
            "cell": {"id": cell.id, **cell.to_dict()},
            "resolved": method,
            "cost": cost and asdict(cost),
        }
    )


def _show_verdict(terminal: Terminal, summary: Mapping[str, Any], out: Path | None) -> None:
    """How it went in one line, and what comes next."""
    if summary["error"] is not None:
        terminal.line(f"Verdict: the method failed with {summary['error']['type']}.", style=f"bold {STYLES['bad']}")
        return
    before, after = summary["scores"]["before"], summary["scores"]["final"] or summary["scores"]["immediate"]
    said = (summary.get("said") or {}).get("after") or {}
    shares = [
        ("written", after["EA"]),
        ("said", said.get("said")),
        ("said in chat", said.get("said_chat")),
        ("paraphrases said", said.get("said_paraphrase")),
    ]
    parts = [f"{what} {value:.1f} %" for what, value in shares if value is not None]
    if after["NA"] is not None:
        parts.append(f"neighbors right {before['NA']:.1f} → {after['NA']:.1f} %")
    if summary["perplexity"] is not None:
        parts.append(f"perplexity × {summary['perplexity']['ratio']:.4f}")
    missing = {
        "what is said": said.get("said"),
        "paraphrases": after["PA"],
        "neighbors": after["NA"],
        "perplexity": summary["perplexity"],
    }
    unknown = [what for what, value in missing.items() if value is None]
    left = f"; NOT MEASURED: {', '.join(unknown)}" if unknown else ""
    good = not unknown and all(value == 100 for _, value in shares if value is not None) and after["NA"] >= before["NA"]
    outcome = "good" if good else "doubtful"
    terminal.line(f"Verdict on {after['n']} facts: {', '.join(parts)}{left}.", style=f"bold {STYLES[outcome]}")
    if out is not None:
        terminal.line(f"Next, look: emendo report {quoted(out)}", unbroken=True)


def show_summary(terminal: Terminal, summary: Mapping[str, Any]) -> None:
    """Everything that a cell found, in tables that say what they are of."""
    from emendo.evaluate.measures import MEASURES

    cell = summary["cell"]
    if summary["error"] is not None:
        error = summary["error"]
        for line in f"{error['type']} in batch {error['batch']}: {error['message']}".splitlines():
            terminal.line(line)
    of = f"{cell['method']}, mode {cell['mode']}, batch size {cell['batch_size']}, n = {cell['n']}, seed {cell['seed']}"
    _show_scores(terminal, summary, of)
    measured = [measure for measure in MEASURES.values() if summary.get(measure.name) is not None]
    for measure in measured:
        if measure.rows:
            _show_answers(terminal, f"{measure.title}, in percent ({of})", summary[measure.name])
    for measure in measured:
        if measure.line is not None:
            terminal.line(measure.line(summary[measure.name]))
    ppl = summary["perplexity"]
    if ppl is not None:
        terminal.line(
            f"Perplexity of a held-out text: {ppl['before']:.2f} before, {ppl['after']:.2f} after "
            f"(ratio {ppl['ratio']:.4f}, measured {ppl['measured']} time(s))"
        )
    if summary["layers"]:
        names = ("layer", "relative_norm", "relative_cost", "constraint_error", "condition", "key_overlap")
        terminal.table(
            "Weights",
            ("layer", "‖ΔW‖/‖W‖", "tr(ΔCΔᵀ)/tr(WCWᵀ)", "constraint error", "condition", "key overlap"),
            [
                (str(row["layer"]), *("–" if row[name] is None else f"{row[name]:.3g}" for name in names[1:]))
                for row in summary["layers"]
            ],
        )
    if summary["curve"]:
        terminal.table(
            "While edits were added",
            ("edits", "perplexity ratio", "retention, %", "‖ΔW‖/‖W‖"),
            [
                tuple("–" if point[name] is None else f"{point[name]:.4g}" for name in _POINT)
                for point in summary["curve"]
            ],
        )
    terminal.table(
        "Before and after (greedy continuation)",
        ("", "prompt", "before", "after"),
        [
            (s["kind"], s["prompt"], " ".join(s["before"].split()), " ".join(s["after"].split()))
            for s in summary["samples"]
        ],
    )
    begins, peaks = summary.get("begin_bytes_by_stage", {}), summary["peak_bytes_by_stage"]
    terminal.table(
        "Seconds and memory of the process by stage",
        ("stage", "seconds", "MiB at its begin", "peak MiB"),
        [
            (
                stage,
                float(seconds),
                *(f"{held[stage] / 2**20:.0f}" if stage in held else "" for held in (begins, peaks)),
            )
            for stage, seconds in summary["seconds"].items()
        ],
    )


def _show_answers(terminal: Terminal, title: str, answers: Mapping[str, Any]) -> None:
    """Means before and after, by raw prompt and chat template where both were asked."""
    asked = [f" ({kind})" for kind in ("raw", "chat") if answers["after"].get(kind) is not None]
    rows = []
    for kind in asked or [""]:
        before, after = (answers[when][kind[2:-1]] if kind else answers[when] for when in ("before", "after"))
        for name, bounds in after["intervals"].items():
            if after[name] is not None:
                shown = "–" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
                rows.append(
                    (name + kind, f"{before[name]:.1f}", f"{after[name]:.1f}", shown, str(after["counts"][name]))
                )
    terminal.wide_table(title, ("measure", "before", "after", "after, 95 %", "records"), rows)


_POINT = ("edits", "perplexity_ratio", "retention", "relative_norm")


def _show_scores(terminal: Terminal, summary: Mapping[str, Any], of: str) -> None:
    scores = {name: found for name, found in summary["scores"].items() if found is not None}
    metrics = [
        name
        for name in ("ES", "PS", "NS", "S", "EA", "PA", "NA", "EM", "PM", "NM")
        if scores["before"][name] is not None
    ]
    header = ["metric"]
    for name in scores:
        header += [name, f"{name}, 95 %"]
    rows = []
    for metric in metrics:
        row = [metric]
        for found in scores.values():
            bounds = found["intervals"][metric]
            row += [f"{found[metric]:.1f}", "–" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"]
        rows.append(row)
    title = (
        f"Scores in percent ({of}, schedule {summary['cell']['schedule']}; ES/PS/NS compare probabilities, "
        "EA/PA/NA ask for the argmax)"
    )
    terminal.wide_table(title, header, rows)
    for note in scores["before"]["notes"]:
        terminal.line(f"  {note}")
