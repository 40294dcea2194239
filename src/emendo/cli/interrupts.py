"""What Ctrl-C leaves: a command that is interrupted after its result is in says so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from emendo.errors import EmendoError, InterruptError

if TYPE_CHECKING:
    from emendo.ledger import Record


_LEFT = {
    **dict.fromkeys(("edit", "demo"), "no update was written; finished searches are kept for the next try"),
    **dict.fromkeys(("trace", "layers", "experiment"), "what is finished is kept: run it again to go on"),
    "eval": "with --out what is finished is kept: run it again to go on",
    "moments": "what was collected is kept: run it again to go on",
    "ledger": "the ledger is as it was",
}
"""What an interrupted command leaves, by its name; others leave nothing."""


def what_is_left(arguments: Sequence[str]) -> str:
    """The message of a command that Ctrl-C ended before its result was in.

    Args:
        arguments: Of the command line.
    """
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    return f"interrupted; {_LEFT.get(name, 'nothing was written')}"


@contextmanager
def truthful(ledger: Path | None, out: Path | None = None) -> Iterator[None]:
    """Inside, an interrupt says what is new in a ledger and in a folder, where anything is.

    Args:
        ledger: The folder of a ledger that the command writes.
        out: The folder of a result that it writes.

    Raises:
        InterruptError: There is something new.
    """
    record, result = _newest(ledger), _result(out)
    try:
        yield
    except KeyboardInterrupt as error:
        new = []
        if (now := _newest(ledger)) is not None and (record is None or now.id != record.id):
            new.append(f"the ledger has the record {now.id[:12]} (number {now.number}, {now.operation} by {now.who})")
        if (found := _result(out)) is not None and found != result:
            new.append(f"{str(out)!r} has the new result")
        if new:
            raise InterruptError(f"interrupted, but {' and '.join(new)}") from error
        raise


def _newest(folder: Path | None) -> Record | None:
    if folder is not None:
        from emendo.ledger import LedgerStore

        with suppress(EmendoError):
            store = LedgerStore(folder)
            return store.record(store.head()[0])
    return None


def _result(folder: Path | None) -> tuple[int, int] | None:
    """Which update file a folder holds: a new one is another file."""
    if folder is not None:
        from emendo.report.folder import UPDATE_NAME

        with suppress(OSError):
            found = os.lstat(folder.expanduser() / UPDATE_NAME)
            return found.st_ino, found.st_mtime_ns
    return None
