"""`emendo edit`: write facts, judge the edit, and leave an update and a report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from emendo.cli import facts, gate, options
from emendo.cli import ledger as ledgers
from emendo.cli.console import Terminal, coloured
from emendo.cli.footprint import tell_if_too_large
from emendo.cli.interrupts import truthful
from emendo.errors import RequestError
from emendo.io.printable import quoted
from emendo.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from emendo.editing.plan import Plan
    from emendo.editing.session import EditSession
    from emendo.ledger.pending import PendingEdit
    from emendo.report import Judgement
    from emendo.requests import EditRecord, Join


def edit(
    context: typer.Context,
    model: options.Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text with one {} for the subject.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What the fact is about.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The new continuation.")] = None,
    join: Annotated[
        str, typer.Option("--join", help="Between prompt and target: auto, space or none (docs/reference/data.md).")
    ] = "auto",
    chat: facts.Chat = False,
    system: facts.System = None,
    target_true: Annotated[
        str | None, typer.Option("--target-true", help="The current continuation, for scores.")
    ] = None,
    requests: facts.Requests = None,
    format: facts.Format = "auto",
    method: options.Method = DEFAULT_METHOD,
    layers: options.Layers = None,
    settings: options.Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the update and the reports.")] = None,
    overwrite: options.Overwrite = False,
    no_judge: Annotated[
        bool, typer.Option("--no-judge", help="Write the edit unmeasured: no scores, perplexity or answers.")
    ] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Dry run: show every setting and where it comes from.")
    ] = False,
    repeated: Annotated[
        bool, typer.Option("--repeat", help="Facts from standard input, a JSON object a line, each written at once.")
    ] = False,
    ledger: Annotated[Path | None, typer.Option("--ledger", help="Keep the edit in this ledger.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace earlier edits of the same facts.")] = False,
    message: ledgers.Message = "",
    who: ledgers.Who = None,
    limits: gate.Gate = None,
    force: gate.Force = False,
    rejected: Annotated[
        Path | None, typer.Option("--rejected", help="File for an update that its gate refuses, to look at.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write facts into a model: one from --prompt, --subject and --target, or many from --requests."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    # Everything that can be refused is refused before the model is loaded.
    if repeated:
        _repeat(
            *(terminal, model, method, layers, settings, out, options.given(context)),
            overwrite=overwrite,
            seed=seed,
            device=device,
            dtype=dtype,
            load_in=load_in,
        )
        return
    options.check_workers(workers, ray, load_in=load_in)
    records = _records(terminal, prompt, subject, target, join, target_true, requests, format)
    records = facts.asked_in_chat(records, chat=chat, system=system, join=join)
    chosen_layers, chosen_settings = options.parse_layers(layers), options.parse_settings(settings)
    from emendo.methods import check_named
    from emendo.report import check_free
    from emendo.requests import check_requests

    check_requests([record.request for record in records])
    check_named(method, chosen_settings).evaluation_prompts(records)
    if out is not None:
        check_free(out, overwrite=overwrite or plan_only)
    ledgers.check_ledger(ledger, records, replace=replace, message=message, who=who)
    chosen_gate = gate.choose_gate(limits, force)
    if rejected is not None:
        gate.check_rejected(rejected, chosen_gate)

    from emendo.editing.plan_memory import PlanMemory
    from emendo.editing.session import EditSession
    from emendo.editing.value_cache import remembered_targets
    from emendo.models import load

    if load_in is None and device in ("auto", "cpu"):
        tell_if_too_large(terminal, model, dtype, method, chosen_layers, chosen_settings, len(records))
    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    session = EditSession(lm, seed=seed, progress=terminal)
    if plan_only:
        resolved = session.resolve(method, layers=chosen_layers, settings=chosen_settings)
        from emendo.cli.plan_only import show_plan

        engine = resolved.on_engine()
        config = None if engine is None else engine.config
        show_plan(terminal, session, resolved.config.evaluation_prompts(records), resolved.to_dict(), config)
        return
    with (
        options.chosen_workers(workers, ray) as crew,
        truthful(ledger, out),
        ledgers.pending_edit(terminal, ledger, session, records, replace=replace, message=message, who=who) as pending,
    ):
        session.workers = crew
        session.targets = remembered_targets([record.request for record in records], crew)
        session.plans = PlanMemory()
        run_edit(
            *(terminal, session, records, method, chosen_layers, chosen_settings, out, pending, chosen_gate),
            model=model,
            ledger=ledger,
            rejected=rejected,
            overwrite=overwrite,
            judged=not no_judge,
        )


def _repeat(
    terminal: Terminal,
    model: str,
    method: str,
    layers: str | None,
    settings: list[str] | None,
    out: Path | None,
    given: list[str],
    *,
    overwrite: bool,
    seed: int,
    device: str,
    dtype: str,
    load_in: str | None,
) -> None:
    """Facts one after another, each planned with everything made ready."""
    from emendo.cli.repeat import check_repeat, repeat, standard_input

    check_repeat(given, out, overwrite=overwrite)
    chosen_layers, chosen_settings = options.parse_layers(layers), options.parse_settings(settings)
    from emendo.methods import check_named

    check_named(method, chosen_settings)
    from emendo.editing.session import EditSession
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    session = EditSession(lm, seed=seed, progress=terminal)
    ready = session.prepare(method, layers=chosen_layers, settings=chosen_settings)
    repeat(terminal, ready, standard_input(), out)


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
    *,
    model: str,
    ledger: Path | None = None,
    rejected: Path | None = None,
    overwrite: bool = False,
    judged: bool = True,
) -> dict[str, Any]:
    """Plan, judge, show and write an edit; the session is left without it, unless it goes into a ledger.

    Args:
        terminal: Of the command.
        session: Holds the model.
        records: The facts with their probes.
        method: A method or baseline.
        layers: Edited layers; None: the method's.
        settings: Its settings by dotted name.
        out: Folder of the result; None: none is written.
        pending: The ledger's side of the edit, if it goes into one.
        chosen_gate: The limits that it has to hold, if any.
        model: As the command names it.
        ledger: Folder of the ledger that it goes into, if any.
        rejected: File for an update that its gate refuses; None: it is not written.
        overwrite: Replace a result that is in the folder.
        judged: Measure the model without the edit and with it.

    Returns:
        The report document, which has been printed under --json.

    Raises:
        GateError: The edit fails the gate, and was shown and not written.
    """
    from emendo.report import (
        NOT_JUDGED,
        added_ridge_note,
        edit_snapshots,
        judge,
        report_document,
        verdict_of,
        with_judgement,
        write_folder,
    )

    begin = time.perf_counter()
    plan = session.plan([record.request for record in records], method, layers=layers, settings=settings)
    # Judgement and gate ask the same two states, and each question once.
    before, after = edit_snapshots(session, plan, records, progress=terminal, remember=True)
    judgement = judge(session, plan, records, before=before, after=after, progress=terminal) if judged else None
    if judgement is not None:
        plan = with_judgement(plan, judgement)
    gated = None
    if chosen_gate is not None:
        plan, gated = chosen_gate.hold(terminal, session, plan, before, after)
        out = out if gated.admitted else None
    stages = dict(terminal.seconds)
    verdict = verdict_of(len(records), judgement, gated)
    document = report_document(plan, judgement, {**stages, "total after loading": time.perf_counter() - begin}, verdict)
    if judged:  # for once into the weights themselves, and out of them again
        with session.applied(plan.update):
            pass
    session.rollback()  # of the earlier edits of a ledger; otherwise there are none
    # Rolled back is checked on the bytes of every touched matrix.
    checked = session.verify_rolled_back()
    document["rolled_back_bitwise"] = checked
    document["files"] = write_folder(out, plan.update, document, overwrite=overwrite) if out is not None else {}
    if rejected is not None and gated is not None and not gated.admitted:
        document["rejected"] = str(plan.update.save(rejected))
    if pending is not None and (gated is None or gated.admitted):
        document["ledger"] = ledgers.keep_edit(pending, plan.update, document)
    gate.show_verdict(terminal, verdict)
    show_next(terminal, model, document, ledger, admitted=gated is None or gated.admitted)
    if judgement is None:
        terminal.line(f"{NOT_JUDGED} (--no-judge).", style="yellow")
    else:
        show_judgement(terminal, judgement)
    for warning in plan.warnings:
        terminal.line(f"Note: {warning}")
    if gated is not None:
        gate.show_gate(terminal, gated)
    _show_cost(terminal, document)
    if note := added_ridge_note(document):
        terminal.line(note)
    terminal.line(_state_of_memory(checked, plan, saved=bool(document["files"])))
    if (record := document.get("ledger")) is not None:
        terminal.line(f"Ledger: record {record['id'][:12]} ({record['operation']}, number {record['number']})")
        ledgers.tell_of_environment(terminal, record["details"])
    if document["files"]:
        terminal.line(f"Update: {document['files']['update']} ({plan.update.nbytes / 1024:.0f} KiB)")
        terminal.line(f"Report: {document['files']['markdown']}")
    if "rejected" in document:
        terminal.line(f"Rejected update: {document['rejected']}")
    terminal.result(document)
    if gated is not None:
        written = "Only the rejected update was written." if "rejected" in document else "Nothing was written."
        gate.refuse_failed(terminal, gated, f"{written} --force writes it anyway; the record says so.")
    return document


def _state_of_memory(checked: Mapping[str, bool], plan: Plan, *, saved: bool) -> str:
    """What the model in memory holds after the command: its own weights, whatever was tried on it."""
    restored = sum(checked.values())
    if not plan.update.layers:
        return "The model in memory: no weights changed."
    if not checked:
        return "The edit was not applied to the model in memory."
    if restored == len(checked) and saved:
        return f"The model in memory is restored exactly ({restored} of {restored} tensors); the edit is in its files."
    return f"The model in memory: {restored} of {len(checked)} tensors are restored exactly."


def show_next(terminal: Terminal, model: str, document: dict[str, Any], ledger: Path | None, *, admitted: bool) -> None:
    """The commands that come next: look, ship, undo; or another try.

    Args:
        terminal: Of the command.
        model: As the command names it.
        document: The report.
        ledger: Where the edit went, if it went into one.
        admitted: Whether it was written at all.
    """
    files = document["files"]
    if not admitted:
        terminal.line("Next: change the edit or the limits and run it again (its searches are kept), or --force")
        return
    steps = []
    if files:
        steps += [("look", f"less {quoted(files['markdown'])}")]
        made = f"--model {quoted(model)} --update {quoted(files['update'])}"
        steps += [("ship", f"emendo export checkpoint {made} --out DIR")]
    if ledger is not None:
        steps += [("undo", f"emendo ledger revert {document['ledger']['id'][:12]} --ledger {quoted(ledger)}")]
    for what, command in steps:
        terminal.line(f"Next, {what}: {command}", unbroken=True)


def show_judgement(terminal: Terminal, judgement: Judgement) -> None:
    """What the model says before and after, and the scores."""
    from emendo.report import score_table

    terminal.table(
        "Before and after (greedy continuation)",
        ("", "prompt", "before", "after", ""),
        (
            (s.kind, s.prompt, " ".join(s.before.split()), " ".join(s.after.split()), coloured(s.mark))
            for s in judgement.samples
        ),
    )
    after = judgement.after.scores
    terminal.table(
        f"Scores in percent (n = {after.n})",
        *score_table(judgement.to_dict()),
    )
    terminal.line("  ES/PS/NS compare probabilities, EA/PA/NA ask for the argmax, said for the words of a greedy text.")
    for note in after.notes:
        terminal.line(f"  {note}")
    terminal.line(
        f"Perplexity of a held-out text: {judgement.perplexity_before:.2f} before, "
        f"{judgement.perplexity_after:.2f} after (ratio {judgement.perplexity_ratio:.4f})"
    )


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
    terminal: Terminal,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    join: str,
    true: str | None,
    requests: str | None,
    format: str,
) -> list[EditRecord]:
    """The records that the options name.

    Raises:
        RequestError: Both forms, neither, or an incomplete one.
    """
    from emendo.requests import EditRecord, EditRequest

    single = {"--prompt": prompt, "--subject": subject, "--target": target}
    given = [name for name, value in single.items() if value is not None]
    if requests is not None:
        given += [name for name, other in (("--target-true", true is not None), ("--join", join != "auto")) if other]
        if given:
            raise RequestError(f"--requests and {', '.join(given)} exclude each other; give one form")
        return facts.read_requests(terminal, requests, format)
    if prompt is None or subject is None or target is None:
        missing = [name for name in single if name not in given]
        raise RequestError(
            f"missing {', '.join(missing)}; expected --prompt, --subject and --target together, or --requests FILE"
        )
    return [EditRecord(EditRequest(prompt, subject, target, join=cast("Join", join)), target_true=true)]
