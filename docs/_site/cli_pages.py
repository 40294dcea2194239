"""A page for each command, read from the Typer application."""

from __future__ import annotations

from functools import cache
from typing import Any

import typer

from emendo.cli.app import app
from emendo.cli.sections import SECTIONS

FOLDER = "reference/cli"


@cache
def cli_pages() -> dict[str, str]:
    """Markdown by path: an overview, and a page for each command and each group of commands."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="emendo")
    commands = {name: root.get_command(context, name) for name in root.list_commands(context)}
    shown = {name: command for name, command in commands.items() if not command.hidden}
    pages = {f"{FOLDER}/index.md": _overview(shown)}
    for name, command in shown.items():
        pages[f"{FOLDER}/{name}.md"] = "\n\n".join(_command(f"emendo {name}", command, context, level=1)) + "\n"
    return pages


def _overview(commands: dict[str, Any]) -> str:
    lines = [
        "# Command line",
        "Made from the code. `emendo COMMAND --help` shows the same in a terminal.",
        "`--json` prints one JSON document on standard output and nothing else. Progress goes to standard error; "
        "`--quiet` silences it. A failure is one message on standard error.",
        "Exit codes: 0 done, 1 failed (a gate that does not hold is one), 2 bad input, 130 interrupted.",
    ]
    placed = [name for names in SECTIONS.values() for name in names]
    rest = [name for name in commands if name not in placed]
    for title, names in {**SECTIONS, "More": rest}.items():
        if any(name in commands for name in names):
            lines.append(f"## {title}")
            lines.append(
                "\n".join(f"* [`emendo {n}`]({n}.md): {_sentence(commands[n])}" for n in names if n in commands)
            )
    return "\n\n".join(lines) + "\n"


def _command(name: str, command: Any, parent: Any, level: int) -> list[str]:
    """A command with its arguments and options; of a group, each of its commands after it."""
    context = typer.Context(command, info_name=name, parent=None)
    parts = ["#" * level + f" {name}"]
    if command.help:
        parts.append(command.help.replace("\b\n", "").strip())
    usage = " ".join(command.collect_usage_pieces(context))
    parts.append(f"```console\n$ {name} {usage}\n```")
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        records = [
            record
            for parameter in command.get_params(context)
            if parameter.param_type_name == kind and (record := parameter.get_help_record(context)) is not None
        ]
        if records:
            parts.append(f"**{title}**")
            parts += [f"`{flag}`\n:   {_escaped(text) or '–'}" for flag, text in records]
    if command.epilog:
        parts.append(command.epilog)
    for sub in getattr(command, "list_commands", lambda _: [])(context):
        inner = command.get_command(context, sub)
        if not inner.hidden:
            parts += _command(f"{name} {sub}", inner, context, level + 1)
    return parts


def _sentence(command: Any) -> str:
    return _escaped(command.get_short_help_str(200))


def _escaped(text: str) -> str:
    """Help as Markdown: nothing of it is markup but what stands in backticks."""
    text = " ".join(text.split())
    pieces = text.split("`")
    pieces[::2] = [piece.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;") for piece in pieces[::2]]
    return "`".join(pieces)
