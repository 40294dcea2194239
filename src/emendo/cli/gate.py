"""`emendo gate`: judge update files against declared limits; and the gate of `emendo edit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import facts, options
from emendo.cli.console import STYLES, Terminal, coloured, shortened
from emendo.errors import GateError, InputError, UpdateFileError
from emendo.io.printable import quoted

if TYPE_CHECKING:
    from emendo.editing.plan import Plan
    from emendo.editing.session import EditSession
    from emendo.evaluate import Snapshot
    from emendo.gate import Check, GateConfig, GateReport, PromptsAtRisk
    from emendo.report import Verdict
    from emendo.requests import EditRecord
    from emendo.updates.update import ModelUpdate

Gate = Annotated[
    str | None,
    typer.Option(
        "--gate", metavar="FILE|default", help="Write the edit only if it keeps these limits; see `emendo gate`."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Write an edit that fails its gate; the report records it.")]

_MOST_CHARACTERS = 100
"""Of a prompt that is named."""


def gate(
    model: Annotated[str | None, typer.Option("--model", help="Hub id, folder, .gguf file, or 'demo'.")] = None,
    update: Annotated[
        list[Path] | None, typer.Option("--update", help="Update file; several in the order in which they are applied.")
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests", metavar="FILE", help="The edited facts with their probes; default: those in the files."
        ),
    ] = None,
    format: facts.Format = "auto",
    at_risk: Annotated[
        Path | None,
        typer.Option("--at-risk", metavar="FILE", help="Prompts to look through for those that the edit may change."),
    ] = None,
    most: Annotated[int, typer.Option("--most", help="Of --at-risk, how many are asked.")] = 20,
    config: Annotated[
        str, typer.Option("--config", metavar="FILE|default", help="Checks and limits, TOML.")
    ] = "default",
    print_default: Annotated[
        bool, typer.Option("--print-default", help="Print the default checks and limits, with comments.")
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Judge update files: exit code 0 where every declared check holds, 1 where one fails; nothing is written."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.gate import default_text, read_config, reference_snapshot, run_gate

    if print_default:
        print(default_text(), end="")
        return
    if model is None or not update:
        raise InputError("expected --model MODEL and --update FILE (or --print-default)")
    chosen = read_config(config)
    _check_canaries(chosen)
    prompts = _looked_through(at_risk, most)
    updates = [_loaded(path) for path in update]
    if prompts:
        from emendo.gate.at_risk import edits_apart

        edits_apart(updates)
    records = _records(updates) if requests is None else facts.read_requests(terminal, requests, format)

    from emendo.editing.session import EditSession
    from emendo.evaluate import Snapshot
    from emendo.evaluate.remembered import RememberedAnswers
    from emendo.models import load
    from emendo.report import verdict_of

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    session = EditSession(lm, seed=_seed(updates), progress=terminal)
    before = reference_snapshot(session, records, chosen, progress=terminal, remember=True)
    known = RememberedAnswers(lm, [one.id for one in updates])
    after = Snapshot(lambda: session.preview(updates), records, progress=terminal, remembered=known)
    report = run_gate(session, updates, records, chosen, before=before, after=after, progress=terminal)
    verdict = verdict_of(len(records), None, report)
    show_verdict(terminal, verdict)
    if report.passed:
        given = " ".join(f"--update {quoted(one)}" for one in update)
        command = f"emendo export checkpoint --model {quoted(model)} {given} --out DIR"
        terminal.line(f"Next: ship it with {command}", unbroken=True)
    show_gate(terminal, report)
    found: dict[str, Any] = {}
    if prompts:
        from emendo.gate import prompts_at_risk

        risk = prompts_at_risk(session, updates, prompts, most=most, before=before, after=after)
        _show_at_risk(terminal, risk)
        found = {"at_risk": risk.to_dict()}
    terminal.result(report.to_dict() | {"verdict": verdict.to_dict()} | found)
    refuse_failed(terminal, report)


def _looked_through(file: Path | None, most: int) -> list[str]:
    """The prompts of --at-risk.

    Raises:
        DatasetError: The file cannot be read, or has none.
        InputError: None of them is to be asked.
    """
    if most < 1:
        raise InputError(f"expected at least 1 prompt to be asked, found {most} (--most 20)")
    if file is None:
        return []
    from emendo.datasets.prompts import read_prompts

    return read_prompts(file)


def _show_at_risk(terminal: Terminal, risk: PromptsAtRisk) -> None:
    """The prompts that were asked, and how many of them change. It is no check: nothing passes or fails by it."""
    terminal.table(
        f"Prompts at risk: the edit fires most at these {len(risk.prompts)} of {risk.looked_at:,}",
        ("prompt", "KL", "next token", "fires most"),
        (
            (
                shortened(repr(row.prompt), _MOST_CHARACTERS),
                f"{row.kl:.3f}",
                coloured("changed", f"{row.before!r} → {row.after!r}") if row.changed else repr(row.before),
                f"{row.firing:.2f} {row.edit}",
            )
            for row in risk.prompts
        ),
    )
    terminal.line(
        f"After {len(risk.changed)} of them another token is most likely. The other prompts were not asked; "
        "`emendo diff` asks all."
    )


# ---- the gate of another command -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateChoice:
    """The gate that a command was given.

    Attributes:
        config: Checks and limits.
        force: Whether a failing edit is written all the same.
    """

    config: GateConfig
    force: bool

    def hold(
        self, terminal: Terminal, session: EditSession, plan: Plan, before: Snapshot, after: Snapshot
    ) -> tuple[Plan, GateReport]:
        """Run the gate: the plan with the report in its update, and the report.

        Args:
            terminal: Told about the stages.
            session: Holds the model; left as it was.
            plan: The edit.
            before: The session's model without it.
            after: The session's model with it.
        """
        from emendo.gate import reference_snapshot, run_gate, with_report

        reference = before
        if self.config.reference == "base" and session.applied_updates:
            reference = reference_snapshot(session, before.records, self.config, progress=terminal, remember=True)
        report = run_gate(session, plan, before.records, self.config, before=reference, after=after, progress=terminal)
        report = report.override() if self.force else report
        return with_report(plan, report), report


def choose_gate(gate: str | None, force: bool) -> GateChoice | None:
    """The gate that ``--gate`` and ``--force`` name; whatever cannot be used is refused before a model is loaded.

    Raises:
        GateConfigError: The configuration or a canary file cannot be used.
        InputError: ``--force`` without a gate.
    """
    if gate is None:
        if force:
            raise InputError("--force lets a failing edit through its gate, and there is none; add --gate default")
        return None
    from emendo.gate import read_config

    config = read_config(gate)
    _check_canaries(config)
    return GateChoice(config, force)


def check_rejected(path: Path, chosen: GateChoice | None) -> None:
    """Refuse a file for a rejected update that cannot be written, or that no gate could fill.

    Raises:
        InputError: There is no gate.
        OutputError: The file cannot be written.
    """
    if chosen is None:
        raise InputError("--rejected keeps an update that its gate refuses, and there is none; add --gate default")
    from emendo.io.writable import check_writable_file

    check_writable_file(path)


def show_gate(terminal: Terminal, report: GateReport) -> None:
    """Every check with its result and its limit; in words what fails, which prompts do, and what was not measured."""
    terminal.line(f"Gate, compared with the {'unedited' if report.reference == 'base' else 'current'} model:")
    terminal.table(
        "",
        ("check", "result", "limit"),
        (
            (check.name, coloured(check.outcome, _result(check)), f"{'≥' if check.at_least else '≤'} {check.limit:.4g}")
            for check in report.checks
        ),
    )
    for check in report.failures:
        terminal.line(f"{check.name} fails: {check.words}", style="red")
    for check in report.checks:
        if check.at_least or not check.passed or check.name == "neighborhood_lost":
            for detail in check.details:
                if "prompt" in detail:
                    terminal.line(f"  {check.name}: {_prompt(detail)}")
    reasons: dict[str, list[str]] = {}
    for check in report.checks:
        if check.measured is None and check.passed:
            reasons.setdefault(check.words.removeprefix("not measured: "), []).append(check.name)
    for reason, names in reasons.items():
        terminal.line(f"Not measured: {', '.join(names)}: {reason}", style="yellow")
    if report.rounding and report.passed:  # where it fails, the message at the end says it
        terminal.line(f"What was judged is what is left: {report.rounding}.", style="yellow")
    if report.moved_most:
        terminal.line(f"Text that moved most: {report.moved_most}.")
    if report.not_declared:
        terminal.line(f"Not checked, because the configuration does not declare it: {', '.join(report.not_declared)}.")
    if report.forced:
        terminal.line("The gate fails and --force overrides it; the update and the report record that.", style="red")


def _result(check: Check) -> str:
    if check.measured is None:
        return "not measured" if check.passed else "not measured, fail"
    return f"{'pass' if check.passed else 'fail'} {check.measured:.4g}"


def _prompt(detail: Mapping[str, Any]) -> str:
    """A prompt that a check names, and what is known of it."""
    text = shortened(repr(detail["prompt"]), _MOST_CHARACTERS) + (" in chat" if detail.get("chat") else "")
    if "says" in detail:
        return f"{text} → {detail['says'].strip()!r}"
    if "before" in detail:
        return f"{text}: {detail['before']!r} → {detail['after']!r}"
    return text


def show_verdict(terminal: Terminal, verdict: Verdict) -> None:
    """One line that says how it went, in its colour, and the facts that are not said."""
    terminal.line(f"Verdict: {verdict}", style=f"bold {STYLES[verdict.outcome]}")
    for line in verdict.missed().splitlines():
        terminal.line(line, style="red")


def refuse_failed(terminal: Terminal, report: GateReport, hint: str = "") -> None:
    """End the command with exit code 1 where the gate fails and was not forced.

    Args:
        terminal: Of the command; under ``--json`` its document, which is complete, has the report already.
        report: What the gate found.
        hint: What became of the edit, and the way on.

    Raises:
        GateError: Which checks fail and by how much.
    """
    if report.admitted:
        return
    message = "\n".join(filter(None, [report.summary(), hint]))
    if not terminal.json_output:
        raise GateError(message)
    terminal.message(f"emendo: {message}")
    raise typer.Exit(GateError.exit_code)


def _check_canaries(config: GateConfig) -> None:
    from emendo.gate import read_canaries

    read_canaries(config.canaries.files, config.folder)


def _loaded(path: Path) -> ModelUpdate:
    from emendo.updates.update import ModelUpdate

    update = ModelUpdate.load(path)
    if not update.layers:
        raise UpdateFileError(
            f"{str(path)!r} changes no weights: it is in-context editing, whose fact is put in front of every prompt. "
            "Gate it where it is planned: emendo edit --method in-context --gate default"
        )
    return update


def _records(updates: list[ModelUpdate]) -> list[EditRecord]:
    """The bare requests that the updates record; of a fact written twice the last."""
    from emendo.errors import InputError
    from emendo.requests import record_from_dict

    found: dict[str, EditRecord] = {}
    for update in updates:
        rows = update.info.get("requests")
        try:
            for row in rows if isinstance(rows, list) else []:
                record = record_from_dict(row)
                found[record.request.fact] = record
        except (InputError, TypeError) as error:
            raise UpdateFileError(
                f"the requests recorded in an update file cannot be read; name the facts with --requests FILE. {error}"
            ) from error
    return list(found.values())


def _seed(updates: list[ModelUpdate]) -> int:
    """The seed that the updates were planned with, on which sampled second moments depend."""
    seed = updates[-1].info.get("seed")
    return seed if isinstance(seed, int) else 0
