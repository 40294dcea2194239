"""`emendo ui`: a page in the browser to ask a model, edit it, and see what an edit does."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from emendo.ledger import EditLedger
    from emendo.models import EditableModel

_LEDGER, _HOST, _PORT = Path("out/ledger"), "127.0.0.1", 7860


def ui(
    model: options.Model = "demo",
    ledger: Annotated[
        Path, typer.Option("--ledger", envvar="EMENDO_LEDGER", help="Folder of the ledger; made if there is none.")
    ] = _LEDGER,
    method: options.Method = DEFAULT_METHOD,
    layers: options.Layers = None,
    settings: options.Set = None,
    gate: Annotated[
        str, typer.Option("--gate", metavar="FILE|default|none", help="Limits that an edit has to keep.")
    ] = "default",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own needs a password.")
    ] = _HOST,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = _PORT,
    password: Annotated[
        str | None,
        typer.Option(
            "--password",
            envvar="EMENDO_UI_PASSWORD",
            help="Password of the page; better set by the variable.",
        ),
    ] = None,
    who: Annotated[
        str | None, typer.Option("--who", help="Name that signs records; your user name unless given.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    quiet: options.Quiet = False,
) -> None:
    """Open a page to ask a model, write facts under a gate, look inside, and undo."""
    terminal = Terminal(quiet=quiet)
    from emendo.methods import check_named
    from emendo.ui.serve import check_extra, check_host, open_socket, serve
    from emendo.ui.settings import DeskSettings

    # Everything that can be refused is refused before the model is loaded.
    check_host(host, password)
    check_extra()
    chosen, named = options.parse_settings(settings), options.parse_layers(layers)
    check_named(method, chosen)
    given = [("--device", device), ("--dtype", dtype), ("--load-in", load_in or "auto")]
    wanted = DeskSettings(
        model,
        method,
        None if named is None else tuple(named),
        chosen,
        gate,
        tuple(word for name, value in given if value != "auto" for word in (name, value)),
    )
    wanted.gate_config()
    listening = open_socket(host, port)

    from emendo.models import load
    from emendo.ui.desk import Desk

    with listening:
        lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
        desk = Desk(lm, _ledger(ledger, lm, model, who), wanted, seed=seed)
        try:
            desk.get_ready()
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does, files tidied away
            with suppress(KeyboardInterrupt):
                serve(desk, listening, host=host, password=password, told=lambda page: _tell(terminal, page, ledger))
        finally:
            desk.close()


def _ledger(folder: Path, lm: EditableModel, model: str, who: str | None) -> EditLedger:
    from emendo.editing.session import EditSession
    from emendo.ledger import EditLedger, LedgerStore

    if LedgerStore(folder).exists:
        return EditLedger(folder, who=who)
    return EditLedger.create(folder, EditSession(lm), model=model, who=who)


def _tell(terminal: Terminal, page: str, ledger: Path) -> None:
    terminal.line(f"Page: {page}", unbroken=True)
    terminal.line(f"Ledger: {ledger}. Ctrl-C ends the page; what is kept stays.")
