"""`emendo edit`: write facts, judge the edit, and leave an update and a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import gate, options
from emendo.cli import ledger as ledgers
from emendo.cli.catalog import show_method
from emendo.cli.console import Terminal
from emendo.errors import RequestError

if TYPE_CHECKING:
    from emendo.ledger.pending import PendingEdit
    from emendo.report import Judgement
    from emendo.requests import EditRecord
    from emendo.session import EditSession


def edit(
    model: options.Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text with one {} for the subject.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What the fact is about.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The new continuation.")] = None,
    target_true: Annotated[
        str | None, typer.Option("--target-true", help="The present continuation, to score against.")
    ] = None,
    requests: Annotated[Path | None, typer.Option("--requests", help="JSONL file, one request a line.")] = None,
    method: options.Method = "emendo",
    layers: options.Layers = None,
    settings: options.Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the update and the reports.")] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print what would be done, with every value's origin; edit nothing.")
    ] = False,
    ledger: Annotated[Path | None, typer.Option("--ledger", help="Keep the edit in this ledger.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take out what the ledger has about these facts, in the same record.")
    ] = False,
    message: ledgers.Message = "",
    who: ledgers.Who = None,
    limits: gate.Gate = None,
    force: gate.Force = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write facts into a model: one from --prompt, --subject and --target, or many from --requests."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    # Everything that can be refused is refused before the model is loaded.
    records = _records(prompt, subject, target, target_true, requests)
    chosen_layers, chosen_settings = options.parse_layers(layers), options.parse_settings(settings)
    from emendo.report import check_writable
    from emendo.requests import check_requests
    from emendo.techniques import asked_after, check_named

    check_requests([record.request for record in records])
    asked_after(check_named(method, chosen_settings), records)
    if out is not None:
        check_writable(out)
    ledgers.check_ledger(ledger, records, replace=replace)
    chosen_gate = gate.choose_gate(limits, force)

    from emendo.models import load
    from emendo.session import EditSession

    session = EditSession(load(model, device=device, dtype=dtype, progress=terminal), seed=seed, progress=terminal)
    if plan_only:
        resolved = session.resolve(method, layers=chosen_layers, settings=chosen_settings)
        show_plan(terminal, session, asked_after(resolved.config, records), resolved.to_dict())
        return
    with ledgers.pending_edit(terminal, ledger, session, records, replace=replace, message=message, who=who) as pending:
        run_edit(terminal, session, records, method, chosen_layers, chosen_settings, out, pending, chosen_gate)


def run_edit(
    terminal: Terminal,
    session: EditSession,
    records: list[EditRecord],
    method: str,
    layers: list[int] | None,
    settings: dict[str, str],
    out: Path | None,
    pending: PendingEdit | None = None,
    chosen_gate: gate.GateChoice | None = None,
) -> dict[str, Any]:
    """Plan, judge, show and write an edit; the session is left without it, unless it goes into a ledger.

    Returns:
        The report document, which has been printed under --json.

    Raises:
        GateError: The edit fails the gate, and was shown and not written.
    """
    from emendo.report import judge, report_document, write_folder

    begin = time.perf_counter()
    plan = session.plan([record.request for record in records], method, layers=layers, settings=settings)
    judgement = judge(session, plan, records, progress=terminal)
    gated = None
    if chosen_gate is not None:
        plan, gated = chosen_gate.hold(terminal, session, plan, records)
        out = out if gated.admitted else None
    stages = dict(terminal.seconds)
    document = report_document(plan, judgement, {**stages, "total after loading": time.perf_counter() - begin})
    session.rollback()  # of the earlier edits of a ledger; otherwise there are none
    # Rolled back is checked on the bytes of every touched matrix.
    checked = session.verify_rolled_back()
    document["rolled_back_bitwise"] = checked
    document["files"] = write_folder(out, plan.update, document) if out is not None else {}
    if pending is not None and (gated is None or gated.admitted):
        document["ledger"] = ledgers.keep_edit(terminal, pending, plan.update, document)
    show_judgement(terminal, judgement)
    if gated is not None:
        gate.show_gate(terminal, gated)
    _show_cost(terminal, document)
    restored = sum(checked.values())
    terminal.line(
        f"Rollback: {restored} of {len(checked)} touched tensors equal their originals bit for bit."
        if checked
        else "Rollback: no weights changed."
    )
    if document["files"]:
        terminal.line(f"Update: {document['files']['update']} ({plan.update.nbytes / 1024:.0f} KiB)")
        terminal.line(f"Report: {document['files']['markdown']}")
    terminal.result(document)
    if gated is not None:
        gate.refuse_failed(terminal, gated, "Nothing was written; --force writes it all the same and records that")
    return document


def show_judgement(terminal: Terminal, judgement: Judgement) -> None:
    """What the model says before and after, and the scores."""
    from emendo.report import SHOWN_SCORES

    terminal.table(
        "Before and after (greedy continuation)",
        ("", "prompt", "before", "after"),
        ((s.kind, s.prompt, " ".join(s.before.split()), " ".join(s.after.split())) for s in judgement.samples),
    )
    before, after = judgement.before.scores, judgement.after.scores
    terminal.table(
        f"Scores in percent (n = {after.n}; ES/PS/NS compare probabilities, EA/PA/NA ask for the argmax)",
        ("metric", "before", "after", f"{after.confidence:.0%} interval"),
        (
            (name, getattr(before, name), getattr(after, name), _interval(after.intervals[name]))
            for name in SHOWN_SCORES
            if getattr(after, name) is not None
        ),
    )
    for note in after.notes:
        terminal.line(f"  {note}")
    terminal.line(
        f"Perplexity of a held-out text: {judgement.perplexity_before:.2f} before, "
        f"{judgement.perplexity_after:.2f} after (ratio {judgement.perplexity_ratio:.4f})"
    )


def show_plan(terminal: Terminal, session: EditSession, records: list[EditRecord], method: dict[str, Any]) -> None:
    """What would be done: every setting with its origin, and how each request is read.

    Args:
        terminal: Where it is shown.
        session: Holds the model.
        records: As the model is asked them, see `asked_after`.
        method: As `to_dict` of a resolved method or baseline gives it.
    """
    from emendo.text import align_edit

    lm = session.lm
    read = []
    for record in records:
        edit = align_edit(lm, record.request)
        read.append(
            {
                **record.request.to_dict(),
                "subject_last_token": lm.decode([edit.prompt.ids[edit.prompt.subject_last]]),
                "target_tokens": [lm.decode([token]) for token in edit.target_ids],
            }
        )
    show_method(terminal, method["name"], method)
    terminal.table(
        "Requests as the model reads them",
        ("subject", "last subject token", "target tokens", "prompt"),
        ((r["subject"], repr(r["subject_last_token"]), str(r["target_tokens"]), r["prompt"]) for r in read),
    )
    terminal.line("Nothing was edited (--plan-only).")
    terminal.result({"plan_only": True, "base": session.base, "method": method, "requests": read})


def _show_cost(terminal: Terminal, document: dict[str, Any]) -> None:
    from emendo.report import layer_table

    if document["layers"]:
        terminal.wide_table("What the edit does to the weights", *layer_table(document))
    else:
        terminal.line("No weights change: after the edit every prompt is asked with its fact in front of it.")
    terminal.table(
        "Seconds by stage", ("stage", "seconds"), [(name, float(s)) for name, s in document["seconds"].items()]
    )


def _records(
    prompt: str | None, subject: str | None, target: str | None, true: str | None, requests: Path | None
) -> list[EditRecord]:
    """The records that the options name.

    Raises:
        RequestError: Both forms, neither, or an incomplete one.
    """
    from emendo.requests import EditRecord, EditRequest, read_records

    single = {"--prompt": prompt, "--subject": subject, "--target": target}
    given = [name for name, value in single.items() if value is not None]
    if requests is not None:
        if given or true is not None:
            raise RequestError(
                f"--requests and {', '.join(given) or '--target-true'} exclude each other; give one form"
            )
        return read_records(requests)
    if prompt is None or subject is None or target is None:
        missing = [name for name in single if name not in given]
        raise RequestError(
            f"missing {', '.join(missing)}; expected --prompt, --subject and --target together, or --requests FILE"
        )
    return [EditRecord(EditRequest(prompt, subject, target), target_true=true)]


def _interval(bounds: tuple[float, float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
