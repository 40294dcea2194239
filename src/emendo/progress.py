"""The one interface through which long stages report progress; the CLI draws it, the library is silent."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives the progress of one stage after another."""

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage of `total` units (None: unknown)."""

    def advance(self, n: int = 1) -> None:
        """Count `n` finished units of the current stage."""

    def finish(self) -> None:
        """End the current stage."""


class Silent:
    """Progress that nobody watches: the default of every library function."""

    def start(self, stage: str, total: int | None = None) -> None:
        """Ignore the start of a stage."""

    def advance(self, n: int = 1) -> None:
        """Ignore finished units."""

    def finish(self) -> None:
        """Ignore the end of a stage."""
