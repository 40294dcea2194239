"""The list of commands in `emendo --help`, by what a user wants to do."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

SECTIONS: dict[str, tuple[str, ...]] = {
    "Edit and measure": ("demo", "ui", "edit", "requests", "eval", "experiment", "report", "data"),
    "Keep edits, check them and take them elsewhere": ("ledger", "gate", "harness", "update", "export", "push"),
    "Look inside": ("trace", "layers", "see", "diff"),
    "Look up": ("methods", "models", "worlds", "moments", "doctor"),
}
"""Commands by heading, in the order in which they are listed."""

_MOST = 200
"""Characters of a command's line, which is wrapped and not cut at the width of the terminal."""


class SectionedGroup(TyperGroup):
    """The commands under headings; plain text, so that help stays fast and pipes well.

    Context and formatter are of the click that typer carries within, which is not public: hence Any.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the sections; a command that has no section comes last."""
        known = super().list_commands(ctx)
        placed = [name for names in SECTIONS.values() for name in names if name in known]
        return placed + [name for name in known if name not in placed]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections; commands that have none stand under a heading of their own."""
        known = self.list_commands(ctx)
        placed = {name for names in SECTIONS.values() for name in names}
        rest = tuple(name for name in known if name not in placed)
        width = max(map(len, known), default=0)
        for title, names in {**SECTIONS, "More": rest}.items():
            found = [(name, self.get_command(ctx, name)) for name in names if name in known]
            rows = [
                (name.ljust(width), command.get_short_help_str(_MOST))
                for name, command in found
                if command is not None and not command.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
