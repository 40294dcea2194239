"""`emendo diff`: two states of a model on a person's prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import facts, options
from emendo.cli.console import Terminal, shortened
from emendo.cli.pages import check_place, load_update

if TYPE_CHECKING:
    from emendo.attribution import State

_OUT, _SHOWN, _WIDE = Path("out/diff"), 20, 60
_LEDGER, _NOW = "ledger:", "now"

_State = typer.Argument(metavar="STATE", help="base, an update file or folder, ledger:ID or ledger:now.")


def diff(
    first: Annotated[str, _State],
    second: Annotated[str, _State],
    model: options.Model,
    prompts: Annotated[Path, typer.Option("--prompts", help="A prompt on each line, or JSON lines (.jsonl).")],
    chat: facts.Chat = False,
    system: facts.System = None,
    ledger: Annotated[
        Path, typer.Option("--ledger", envvar="EMENDO_LEDGER", help="Folder of the ledger that ledger:ID means.")
    ] = Path("."),
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens of each continuation.")] = 16,
    sort: Annotated[
        str, typer.Option("--sort", help="By the KL of the continuation or of the next-token.")
    ] = "continuation",
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = _OUT,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two states of a model on prompts: what it says, how far it moved, which edits act there."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.datasets.prompts import read_prompts
    from emendo.report.diff import PAGE

    check_place(out, PAGE, overwrite=overwrite or out == _OUT)
    asked = facts.prompts_in_chat(read_prompts(prompts), chat=chat, system=system)
    before, after = _state(first, ledger), _state(second, ledger)

    from emendo.attribution import difference
    from emendo.models import load
    from emendo.report.diff import document, write_difference

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    found = difference(
        lm,
        before,
        after,
        asked,
        new_tokens=new_tokens,
        order=sort,  # type: ignore[arg-type]  # checked there
        progress=terminal,
    )
    described = document(found, lm.identity())
    paths = write_difference(out, described)
    _show(terminal, described)
    terminal.line(f"Page: {paths['page']}")
    terminal.result({**described, "files": paths})


def _state(text: str, ledger: Path) -> State:
    """The state that an argument names.

    Raises:
        InputError: There is no such state, or its files cannot be read.
    """
    from emendo.attribution import State

    if text == "base":
        return State("base")
    if text.startswith(_LEDGER):
        from emendo.ledger import EditLedger

        id = text.removeprefix(_LEDGER)
        return State(text, EditLedger(ledger).updates(None if id == _NOW else id))
    return State(text, (load_update(Path(text)),))


def _show(terminal: Terminal, described: dict[str, Any]) -> None:
    from emendo.report.diff.write import fires_most

    names = described["first"]["name"], described["second"]["name"]
    rows = [
        (
            shortened(row["prompt"], _WIDE),
            f"{row['next_kl']:.3f}",
            f"{row['continuation_kl']:.3f}",
            shortened(row["first"]["continuation"].strip(), _WIDE),
            shortened(row["second"]["continuation"].strip(), _WIDE),
            fires_most(row, described),
        )
        for row in described["prompts"][:_SHOWN]
    ]
    terminal.table(
        f"{described['changed']} of {len(described['prompts'])} continuations differ; KL in nats",
        ("prompt", "KL next", "KL cont.", *names, "fires most"),
        rows,
    )
    if (more := len(described["prompts"]) - _SHOWN) > 0:
        terminal.line(f"{more} more prompts are on the page.")
