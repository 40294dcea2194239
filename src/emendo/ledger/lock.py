"""One writer at a time: a lock that the operating system frees when its holder dies.

Readers need no lock: records and update files never change once they have their name, and HEAD is replaced in one step.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from emendo.errors import LedgerBusyError, LedgerError
from emendo.io.printable import well_formed
from emendo.ledger.files import writing

_POLL = 0.05  # seconds
_NOTE = 500  # bytes of the holder's note that are read


@contextmanager
def writer_lock(
    path: Path, operation: str, *, timeout: float, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the only right to write.

    Args:
        path: The lock file. It stays; who holds it is noted inside, for messages only.
        operation: What the holder does, as others are told it.
        timeout: Seconds to wait for another holder; 0 does not wait.
        waiting: Told once, with who holds the lock, when there is something to wait for.

    Raises:
        LedgerBusyError: Another process held it all the time; says which.
        OutputError: The folder cannot be written.
    """
    lock = _Lock(path)
    try:
        lock.acquire(timeout, waiting)
        lock.note(operation)
        yield
    finally:
        try:
            lock.note("")
        finally:
            try:
                lock.release()
            finally:
                lock.release()  # again, where an interrupt came inside the first


class _Lock:
    """The lock file, open. The object is there before anything is locked: an interrupt at any line lets go of it.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None  # no bare handle: forgotten after two interrupts, a file closes itself
        self._held = False

    def acquire(self, timeout: float, waiting: Callable[[str], None] | None) -> None:
        """Wait for the lock; see `writer_lock`."""
        until = time.monotonic() + timeout
        told = False
        while True:
            with writing(self._path):
                self._file = FileIO(self._path, "r+", opener=_opened)
            self._held = _try(self._file.fileno(), self._path)
            if self._held:
                return
            holder = _holder(self._file.fileno())
            self._file.close()
            if time.monotonic() >= until:
                raise LedgerBusyError(
                    f"{str(self._path.parent)!r} is being written by {holder}; waited {timeout:g} s. Nothing was "
                    "changed: try again when that is done, or wait longer (--wait SECONDS)"
                )
            if waiting is not None and not told:
                waiting(f"waiting for {holder}")
                told = True
            time.sleep(min(_POLL, max(until - time.monotonic(), 0.001)))

    def note(self, operation: str) -> None:
        """Say who holds the lock; a full disk must not stop the holder."""
        if self._held and self._file is not None:
            with suppress(OSError):
                _note(self._file.fileno(), operation)

    def release(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()  # frees the lock, as the end of the process does


def _opened(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _try(handle: int, path: Path) -> bool:
    """Whether the file could be locked, and is still the one that the next writer will open."""
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise LedgerError("a ledger needs POSIX file locks (fcntl.flock); use Linux, macOS or WSL") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _note(handle: int, operation: str) -> None:
    os.ftruncate(handle, 0)
    if operation:
        note = {
            "pid": os.getpid(),
            "user": user_name(),
            "host": socket.gethostname(),
            "operation": operation,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.pwrite(handle, json.dumps(note).encode(), 0)


def _holder(handle: int) -> str:
    """Who holds the lock, as far as the note tells."""
    try:
        note = json.loads(os.pread(handle, _NOTE, 0))
        return (
            f"{note['operation']!r} of {note['user']} (process {note['pid']} on {note['host']}, since {note['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"  # it has not written its note yet


def user_name() -> str:
    """Name of the user, where the system knows one."""
    try:
        return well_formed(getpass.getuser())
    except (OSError, KeyError, ImportError):  # no entry in the password database, as in some containers
        return f"uid {os.getuid()}"
