"""`emendo push`: an edit into a model server that runs, and out of it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal, shortened
from emendo.cli.export import Fold, FromLedger, chosen_updates
from emendo.errors import InputError

if TYPE_CHECKING:
    from emendo.serving import Pushed

_HERE = Path("adapters")


def push(
    update: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[UPDATE]...", help="Update files, in the order in which they were made."),
    ] = None,
    ledger: FromLedger = None,
    server: Annotated[str, typer.Option("--server", help="Address, such as http://127.0.0.1:8000.")] = "",
    engine: Annotated[str, typer.Option("--engine", help="llamacpp, vllm or sglang.")] = "",
    model: Annotated[str | None, typer.Option("--model", help="The base model; the ledger's own unless given.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of adapters and aliases, which the server reads.")] = _HERE,
    server_folder: Annotated[
        str | None, typer.Option("--server-folder", help="Path of --out on the server, if it differs.")
    ] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="Name by which clients find the newest adapter.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="With --withdraw: the adapter to withdraw.")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Give clients the unedited model again.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Point --alias back to the previous adapter.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every request; send nothing but GET.")] = False,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Leave the previous adapter in the server.")] = False,
    fold: Fold = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="JSONL of canary prompts to ask; default: the packaged ones.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Nats by which the server's answers may differ from Emendo's.")
    ] = 0.05,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for each answer.")] = 60.0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Put edits into a running llama.cpp, vLLM or SGLang server that answers as Emendo computes; or withdraw them."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    if not server or not engine:
        raise InputError("expected the server's address and kind: --server URL --engine llamacpp|vllm|sglang")
    told = terminal.line if dry_run else None
    if withdraw or rollback:
        _check_alone(update, ledger, withdraw, rollback)
        from emendo.serving.pushing import go_back
        from emendo.serving.pushing import withdraw as take_away

        if withdraw:
            gone = take_away(
                server, engine, out=out, alias=alias, adapter=adapter, timeout=timeout, dry_run=dry_run, told=told
            )
            terminal.line(f"Clients get the unedited model; withdrawn: {gone or 'nothing was active'}")
            terminal.result({"withdrawn": gone, "dry": dry_run})
        else:
            now = go_back(server, engine, out=out, alias=alias, timeout=timeout, dry_run=dry_run, told=told)
            terminal.line(f"Clients get {now} again")
            terminal.result({"model": now, "dry": dry_run})
        return
    updates = chosen_updates(update, ledger, "emendo push FILE ...")
    from emendo.io.writable import check_writable
    from emendo.models import load
    from emendo.serving import push as put
    from emendo.serving.engines import engine_named

    engine_named(engine)
    check_writable(out)
    name, known = _model(model, ledger)
    lm = load(name, device=device, dtype=known if dtype == "auto" else dtype, progress=terminal)
    done = put(
        lm,
        updates,
        server,
        engine,
        out=out,
        alias=alias,
        server_folder=server_folder,
        fold=fold,
        probes=probe or ("packaged",),
        tolerance=tolerance,
        timeout=timeout,
        keep_old=keep_old,
        dry_run=dry_run,
        told=told,
    )
    _report(terminal, done)


def _check_alone(update: list[Path] | None, ledger: Path | None, withdraw: bool, rollback: bool) -> None:
    if update or ledger is not None or (withdraw and rollback):
        raise InputError(
            "--withdraw and --rollback each stand alone, without an update or a ledger: what is served is what they "
            "take away"
        )


def _model(model: str | None, ledger: Path | None) -> tuple[str, str]:
    """The base model and its dtype; a ledger knows both."""
    if ledger is None:
        if model is None:
            raise InputError("expected the model that the update was made for (--model)")
        return model, "auto"
    from emendo.ledger import EditLedger

    first = EditLedger(ledger).log()[0].details
    return model or str(first["model"]), str(first["base"]["dtype"])


def _report(terminal: Terminal, done: Pushed) -> None:
    rows = [
        (one.kind, shortened(one.text, 60), f"{one.own:.4f}", f"{one.served:.4f}", f"{one.difference:.4f}")
        for one in done.edited
    ]
    if rows:
        header = ("", "prompt", "Emendo", "server", "difference")
        terminal.table("Log-probability of the answer, in nats, with the edit", header, rows)
    if done.dry:
        terminal.line(f"Nothing was sent but GET. Adapter: {done.path}")
    elif done.alias is not None:
        terminal.line(f"Clients of the alias {done.alias} get {done.model}; before: {done.before}")
    elif done.before:
        terminal.line(f"All clients get {done.model}; before: {done.before}")
    else:
        terminal.line(f"The server has {done.model}: clients name it as their model")
    if done.left:
        terminal.line(f"The adapter of before is still loaded, which does no harm: {done.left}")
    terminal.result({"push": done.to_dict()})
