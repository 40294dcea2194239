"""The command line. `main` is imported late, so that the package itself costs nothing."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command `emendo` and exit with its code."""
    from emendo.cli.app import main as run

    run(arguments)
