"""`emendo ledger init|log|show|revert|checkout|verify|compact`: a ledger of edits beside a model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.cli.interrupts import truthful
from emendo.errors import LedgerError
from emendo.io.printable import quoted

if TYPE_CHECKING:
    from emendo.editing.session import EditSession
    from emendo.ledger import Active, EditLedger, History
    from emendo.ledger.pending import PendingEdit
    from emendo.requests import EditRecord, EditRequest

Folder = Annotated[Path, typer.Option("--ledger", envvar="EMENDO_LEDGER", help="Folder of the ledger.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Beginning of an id that `emendo ledger log` shows.")]
Message = Annotated[str, typer.Option("--message", "-m", help="Why; kept in the record.")]
Who = Annotated[str | None, typer.Option("--who", help="Name that signs the record; your user name unless given.")]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for another writer.")]

_HERE, _WAIT = Path("."), 60.0


def init(
    folder: Annotated[Path, typer.Argument(envvar="EMENDO_LEDGER", help="A new or an empty folder.")],
    model: options.Model,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    message: Message = "",
    who: Who = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a ledger for a model."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.io.strict_json import check_text
    from emendo.io.writable import check_writable
    from emendo.ledger import EditLedger, LedgerStore
    from emendo.ledger.stamp import check_texts

    check_writable(folder)
    LedgerStore(folder).check_free()
    check_text(model, "the model's name (--model)")
    check_texts(who or "", message)
    session = _session(terminal, model, device, dtype, load_in)
    with truthful(folder):
        ledger = EditLedger.create(folder, session, model=model, message=message, who=who)
    base = ledger.base
    terminal.line(f"Ledger {folder} for {base['name']} ({base['dtype']}, weights {base['weights_sha256'][:12]}…)")
    terminal.line(f"Edits go in with: emendo edit --ledger {quoted(folder)} --model {quoted(model)} ...")
    terminal.result({"ledger": str(folder), "base": base, "record": ledger.log()[0].to_dict()})


def log(
    ledger: Folder = _HERE,
    json_output: options.Json = False,
) -> None:
    """Every operation, newest first; active edits are marked."""
    terminal = Terminal(json_output=json_output)
    from emendo.ledger.words import what_happened

    history = _history(ledger)
    active = {edit.id for edit in history.edits()} | {entry.edit for entry in history.active}
    terminal.table(
        f"{ledger}: {len(history.chain)} records, {len(history.active)} active update(s)",
        ("", "id", "when (UTC)", "who", "operation", "what", "why"),
        (
            (
                "*" if record.id in active else "",
                record.id[:12],
                record.when[:19].replace("T", " "),
                record.who,
                record.operation,
                what_happened(record),
                record.message,
            )
            for record in reversed(history.chain)
        ),
    )
    records = [{**record.to_dict(), "active": record.id in active} for record in history.chain]
    terminal.result({"ledger": str(ledger), "base": history.base, "records": records})


def show(
    id: Id,
    ledger: Folder = _HERE,
    json_output: options.Json = False,
) -> None:
    """Everything about one record."""
    terminal = Terminal(json_output=json_output)
    history = _history(ledger)
    record = history.record(id)
    document = record.to_dict()
    details = document.pop("details")
    added = document.pop("added")
    terminal.table("Record", ("field", "value"), [(name, _text(value)) for name, value in document.items()])
    terminal.table("Details", ("field", "value"), [(name, _text(value)) for name, value in details.items()])
    if added:
        rows = [(e["edit"][:12], e["update"][:12], f"{e['file'][:12]}…", e["size"]) for e in added]
        terminal.table("Updates that are new in it", ("edit", "update", "file", "bytes"), rows)
    after = [entry.to_dict() for entry in history.state(record.id)]
    terminal.result({**record.to_dict(), "state": after})


def revert(
    id: Id,
    ledger: Folder = _HERE,
    how: Annotated[
        str, typer.Option("--how", help="replay: later edits planned again, exact; algebraic: from stored statistics.")
    ] = "replay",
    model: Annotated[str | None, typer.Option("--model", help="The base model; the ledger's own unless given.")] = None,
    device: options.Device = "auto",
    load_in: options.LoadIn = None,
    message: Message = "",
    who: Who = None,
    wait: Wait = _WAIT,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take an edit out, as if it had never been made; later edits are planned again where they depend on it."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    history = _history(ledger)
    gone = history.reverted_by(history.record(id))
    opened, planner = _open(terminal, ledger, who, wait, message), None
    if opened.needs_model(id, how):
        base = history.base
        planner = _session(terminal, model or history.chain[0].details["model"], device, base["dtype"], load_in)
    begin = time.perf_counter()
    with truthful(ledger):
        record = opened.revert(id, planner, how=how, message=message)
    seconds = time.perf_counter() - begin
    terminal.line(f"Reverted {', '.join(edit[:12] for edit in gone)} in {seconds:.1f} s: record {record.id[:12]}")
    terminal.line(f"{len(record.added)} later edit{'' if len(record.added) == 1 else 's'} planned again ({how})")
    tell_of_environment(terminal, record.details)
    terminal.result({"record": record.to_dict(), "seconds": seconds})


def checkout(
    id: Annotated[str | None, typer.Argument(metavar="[ID|base]", help="Record, or 'base': no edits.")] = None,
    ledger: Folder = _HERE,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write that state as one update file instead of going to it."),
    ] = None,
    message: Message = "",
    who: Who = None,
    wait: Wait = _WAIT,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Without ID: what is active. With one: go to the state after that record, or write it to a file."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    history = _history(ledger)
    document: dict[str, Any] = {"ledger": str(ledger)}
    if out is not None:
        from emendo.io.writable import check_writable_file

        check_writable_file(out)
        update = _open(terminal, ledger, who, wait).merged(id)
        document["file"] = str(update.save(out))
        state = "the present state" if id is None else f"the state of {id}"
        terminal.line(f"{out}: {len(update.layers)} layer(s), {update.nbytes / 1024:.0f} KiB, {state}")
    elif id is not None:
        with truthful(ledger):
            record = _open(terminal, ledger, who, wait).checkout(id, message=message)
        document["record"] = record.to_dict()
        terminal.line(f"Now at the state of {id}: record {record.id[:12]}")
        history = _history(ledger)
    active = history.state(id) if out is not None else history.active
    terminal.table("Active updates, in order", ("edit", "facts", "update", "bytes"), _rows(history, active))
    terminal.result({**document, "active": [entry.to_dict() for entry in active]})


def verify(
    ledger: Folder = _HERE,
    json_output: options.Json = False,
) -> None:
    """Check every file against its hash; exit code 1 if anything is wrong."""
    terminal = Terminal(json_output=json_output)
    from emendo.ledger import LedgerStore
    from emendo.ledger.verify import verify as verify_store

    found = verify_store(LedgerStore(ledger))
    if found.problems:
        rows = [(problem.id[:12], problem.what) for problem in found.problems]
        terminal.table(f"{len(rows)} problem(s)", ("record", "what"), rows)
        for line in found.way_out.splitlines():
            terminal.line(line, unbroken=True)
    size = f"{found.nbytes / 1024:.0f} KiB"
    terminal.line(
        f"{found.records} records and {found.objects} update files ({size}) {'are intact' if found.ok else 'were read'}"
    )
    if found.ok:
        terminal.line(found.replay)
    terminal.result(found.to_dict())
    if not found.ok:
        raise typer.Exit(1)


def compact(
    ledger: Folder = _HERE,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest relative change of a layer's update (Frobenius norm).")
    ] = 1e-6,
    message: Message = "",
    who: Who = None,
    wait: Wait = _WAIT,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fold all active updates into one of the smallest rank; every edit in it can still be reverted."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    with truthful(ledger):
        record = _open(terminal, ledger, who, wait).compact(tolerance, message=message)
    details = record.details
    rows = [(row["layer"], *row["ranks"], "yes" if row["past_break_even"] else "") for row in details["layers"]]
    terminal.table("Ranks", ("layer", "before", "after", "dense is smaller"), rows)
    before, after = details["bytes"]
    terminal.line(f"Folded into one update: {before} bytes to {after}, relative error {details['error']:.1e}")
    terminal.line(f"Record {record.id[:12]}")
    terminal.result({"record": record.to_dict()})


app = typer.Typer(
    name="ledger",
    help="Keep edits in a ledger, and take any of them back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
VERBS = (init, log, show, revert, checkout, verify, compact)
for _verb in VERBS:
    app.command(_verb.__name__)(_verb)


def renamed(verb: Callable[..., None]) -> Callable[..., None]:
    """The command under its old spelling, `emendo VERB`, which says the new one."""

    @wraps(verb)
    def old(*arguments: Any, **options: Any) -> None:
        name = verb.__name__
        print(f"emendo: note: `emendo {name}` is `emendo ledger {name}` now; the old spelling will go", file=sys.stderr)
        verb(*arguments, **options)

    return old


# ---- for `emendo edit --ledger` --------------------------------------------------------------------------------


def check_ledger(
    folder: Path | None, records: Sequence[EditRecord], *, replace: bool, message: str, who: str | None
) -> None:
    """Refuse, before the model is loaded, what the ledger would refuse afterwards."""
    if folder is None:
        if replace:
            raise LedgerError("--replace is about the edits of a ledger; name it (--ledger FOLDER)")
        return
    from emendo.io.writable import check_writable
    from emendo.ledger.conflicts import replaced_facts
    from emendo.ledger.stamp import check_texts

    check_texts(who or "", message)
    check_writable(folder, "a ledger must be writable for an edit (--ledger)")
    requests = [record.request for record in records]
    replaced_facts(_history(folder).edits(), requests, replace=replace, folder=folder)


@contextmanager
def pending_edit(
    terminal: Terminal,
    folder: Path | None,
    session: EditSession,
    records: Sequence[EditRecord],
    *,
    replace: bool,
    message: str,
    who: str | None,
) -> Iterator[PendingEdit | None]:
    """The ledger's lock is held and the session is at its state; None without a ledger."""
    if folder is None:
        yield None
        return
    requests = [record.request for record in records]
    ledger = _open(terminal, folder, who, _WAIT)
    with ledger.editing(session, requests, replace=replace, message=message) as pending:
        yield pending


def keep_edit(pending: PendingEdit, update: Any, document: dict[str, Any]) -> dict[str, Any]:
    """Commit an edit with what was measured; gives what the report says about the record."""
    from emendo.report import recorded_metrics

    return pending.commit(update, metrics=recorded_metrics(document), gate=document.get("gate")).to_dict()


def tell_of_environment(terminal: Terminal, details: Mapping[str, Any]) -> None:
    """Say in one line that what a record made again was made elsewhere first, where it was."""
    from emendo.io.environment import changes_in_words

    if told := changes_in_words(details.get("environment_changed", {})):
        terminal.line(f"Note: what was made again may differ in its last bits, bit for bit is not promised: {told}")


# ---- how -------------------------------------------------------------------------------------------------------


def _open(terminal: Terminal, folder: Path, who: str | None, wait: float, message: str = "") -> EditLedger:
    from emendo.ledger import EditLedger
    from emendo.ledger.stamp import check_texts

    check_texts(who or "", message)
    return EditLedger(folder, timeout=wait, waiting=terminal.message, who=who)


def _history(folder: Path) -> History:
    """The records alone: no torch, so that looking is quick."""
    from emendo.ledger import History, LedgerStore

    return History(LedgerStore(folder).chain())


def _session(terminal: Terminal, model: str, device: str, dtype: str, load_in: str | None) -> EditSession:
    from emendo.editing.session import EditSession
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    return EditSession(lm, progress=terminal)


def _rows(history: History, active: Sequence[Active]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for entry in active:
        requests: list[EditRequest] = [r for edit in history.edits([entry]) for r in edit.requests.values()]
        told = ", ".join(f"{request.subject} → {request.target}" for request in requests[:3])
        more = f" and {len(requests) - 3} more" if len(requests) > 3 else ""
        rows.append(((entry.edit or "")[:12], told + more, entry.update[:12], entry.size))
    return rows


def _text(value: object) -> str:
    from emendo.io import strict_json

    text = value if isinstance(value, str) else strict_json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "… (--json shows all)"


_LONGEST = 600
