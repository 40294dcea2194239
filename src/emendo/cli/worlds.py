"""`emendo worlds`: small models that know invented facts, one in each architecture, trained on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal

app = typer.Typer(
    help="Small models that know invented facts, one in each architecture.", no_args_is_help=True, rich_markup_mode=None
)

_HEADS = ("model", "parameters", "facts", "held-out phrasings", "two hops", "passes", "seconds of a processor")


@app.command("list")
def list_worlds(json_output: options.Json = False, quiet: options.Quiet = False) -> None:
    """List the families, and what the model of each knows where it has been trained."""
    from emendo.models.worlds.families import FAMILIES
    from emendo.models.worlds.store import told

    terminal = Terminal(json_output=json_output, quiet=quiet)
    _show(terminal, {family: told(family) for family in FAMILIES})
    terminal.message("`emendo worlds train FAMILY`, or --model world:FAMILY in any command, trains one")


@app.command("train")
def train(
    families: Annotated[list[str], typer.Argument(help="Names that `emendo worlds list` shows, or 'all'.")],
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train models that are not there yet; each is kept under EMENDO_HOME."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.models.worlds.families import FAMILIES
    from emendo.models.worlds.store import check_family, told, trained_folder

    chosen = list(FAMILIES) if families == ["all"] else [family.lower() for family in families]
    for family in chosen:
        check_family(family)
    for family in chosen:
        trained_folder(family, terminal)
    _show(terminal, {family: told(family) for family in chosen})


def _show(terminal: Terminal, found: dict[str, dict[str, Any] | None]) -> None:
    from emendo.worlds import NAME, PREFIX, make_world

    rows = ((f"{PREFIX}{family}", *_cells(about and about["training"])) for family, about in found.items())
    terminal.table("Models of the world", _HEADS, rows)
    terminal.message(f"{len(make_world().facts)} facts: --data {NAME}, --requests {NAME}, or `emendo data {NAME}`")
    terminal.result({"worlds": found})


def _cells(training: dict[str, Any] | None) -> tuple[str, ...]:
    """What a training came to, in the order of the table's heads."""
    if training is None:
        return ("not trained", "", "", "", "", "")
    shares = (f"{100 * training[name]:.1f} %" for name in ("trained", "held_out", "two_hop"))
    return (f"{training['parameters']:,}", *shares, str(training["passes"]), f"{training['seconds']:.0f}")
