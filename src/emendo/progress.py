"""The one interface through which long stages report progress; the CLI draws it, the library is silent unless asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable


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


Watched: TypeAlias = Progress | bool | None
"""What a caller says about progress: who is told, True for bars on the terminal or in the notebook, or nobody."""


def chosen_progress(watched: Watched) -> Progress | None:
    """Who is told; None where nobody is."""
    return Bars() if watched is True else watched or None


def watching(watched: Watched) -> Progress:
    """The same, with `Silent` where nobody is told."""
    return chosen_progress(watched) or Silent()


@contextmanager
def stage(watched: Watched, name: str, total: int | None = None) -> Iterator[Progress]:
    """One stage, which ends however its work ends.

    Args:
        watched: Who is told.
        name: Of the stage.
        total: Its units; None: unknown.
    """
    told = watching(watched)
    told.start(name, total)
    try:
        yield told
    finally:
        told.finish()


def new_bar(stage: str, total: int | None, console: Any) -> Any:
    """A started bar of rich with the time that is left; it goes when it is stopped.

    Args:
        stage: Its text.
        total: Units; None: it moves to and fro.
        console: Of rich.
    """
    from rich import progress

    bar = progress.Progress(
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    bar.start()
    bar.add_task(stage, total=total)
    return bar


class Bars:
    """A bar for each stage, on standard error or in a notebook."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, stage: str, total: int | None = None) -> None:
        """Show a bar."""
        from rich.console import Console

        self.finish()
        self._bar = new_bar(stage, total, Console(stderr=True))

    def advance(self, n: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], n)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
