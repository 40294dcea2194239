"""Files of a ledger: written whole and made durable, read with suspicion.

Every call that changes the disk goes through `os`, one step at a time, so that a test can end the process between any
two of them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emendo.errors import LedgerError, OutputError
from emendo.io import strict_json
from emendo.io.durable import flush, give_name

TEMPORARY = ".tmp-"
"""Beginning of the name of a file that is being written; what a killed operation leaves under it is swept."""

_LEFT = (TEMPORARY, f".{TEMPORARY}")  # the second: what storage.write_tensor_file makes of the first
_CHUNK = 1 << 20


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, and is on the disk when this returns.

    Raises:
        OutputError: The disk is full or the folder cannot be written; nothing appeared under `path`.
    """
    draft = draft_of(path)
    with writing(path):
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(handle, left) :]
                os.fsync(handle)  # before the name: no crash may leave the name on bytes not yet written
            finally:
                os.close(handle)
            if draft.read_bytes() != data:  # before the name as well: nothing is named that cannot be read
                raise OSError(errno.EIO, "what was written is not what is read")
            give_name(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def move_durably(draft: Path, path: Path) -> None:
    """Give a file that is already on the disk its name.

    Raises:
        OutputError: The folder cannot be written.
    """
    with writing(path):
        give_name(draft, path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename is on the disk only after this.

    Raises:
        OutputError: The folder cannot be synchronised.
    """
    with writing(folder):
        flush(folder)


def draft_of(path: Path) -> Path:
    """A new temporary name beside a file."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


def is_draft(path: Path) -> bool:
    """Whether a file is what an interrupted write left."""
    return path.name.startswith(_LEFT)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error that names the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error.strerror or error}; the ledger is as it was. Expected a writable "
            "folder with room: free some, or give another one (--ledger FOLDER)"
        ) from error


def read_limited(path: Path, limit: int, kind: str) -> bytes:
    """The bytes of an ordinary file, its size looked at before anything is read.

    Args:
        path: The file; a symbolic link, a device or a pipe under that name is refused.
        limit: Most bytes.
        kind: What errors call it.

    Raises:
        LedgerError: Missing, too large, unreadable, or no ordinary file.
    """
    with _ordinary(path, kind) as handle:
        size = os.fstat(handle).st_size
        if size > limit:
            raise LedgerError(f"{kind} {str(path)!r} has {size} bytes, expected at most {limit}; {RESTORE}")
        parts = []
        while chunk := os.read(handle, _CHUNK):
            parts.append(chunk)
            size -= len(chunk)
            if size < 0:
                raise LedgerError(f"{kind} {str(path)!r} grew while it was read; {RESTORE}")
        return b"".join(parts)


def check_file(path: Path, sha256: str, size: int, kind: str) -> None:
    """Hold a file against the size and the digest that a record gives.

    Raises:
        LedgerError: Missing, truncated or altered; says which.
    """
    with _ordinary(path, kind) as handle:
        found = os.fstat(handle).st_size
        if found != size:
            word = "is truncated" if found < size else "was altered"
            raise LedgerError(f"{kind} {str(path)!r} {word}: {found} bytes, expected {size}; {RESTORE}")
        if _digest(handle) != sha256:
            raise LedgerError(
                f"{kind} {str(path)!r} was altered: its bytes do not have the digest in its name; {RESTORE}"
            )


def file_digest(path: Path, kind: str) -> tuple[str, int]:
    """SHA-256 and size of an ordinary file."""
    with _ordinary(path, kind) as handle:
        return _digest(handle), os.fstat(handle).st_size


def parse_json(data: bytes, path: Path, kind: str) -> dict[str, Any]:
    """One JSON object, as `strict_json.loads` reads it.

    Bytes that are not UTF-8 are read as Python reads file names: an earlier Emendo could write them into a record, and
    its hash says that it is sound.

    Raises:
        LedgerError: Anything else, however it is built.
    """
    try:
        value = strict_json.loads(data.decode("utf-8", "surrogateescape"))
    except ValueError as error:  # it also covers integers of thousands of digits
        raise LedgerError(f"{kind} {str(path)!r} is damaged: {error}; {RESTORE}") from error
    if not isinstance(value, dict):
        raise LedgerError(f"{kind} {str(path)!r} is damaged: expected a JSON object; {RESTORE}")
    return value


RESTORE = "put that file back from a copy of the ledger; `emendo ledger verify` lists everything that is damaged"
"""What to do about a damaged file: nothing in a ledger can be guessed from the rest."""


@contextmanager
def _ordinary(path: Path, kind: str) -> Iterator[int]:
    """An ordinary file, open for reading; never a link, and never one that blocks."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise LedgerError(f"{kind} {str(path)!r} is missing; {RESTORE}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise LedgerError(
                f"{kind} {str(path)!r} is a symbolic link, expected an ordinary file; {RESTORE}"
            ) from error
        raise LedgerError(f"{kind} {str(path)!r} cannot be read: {error}; {RESTORE}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise LedgerError(f"{kind} {str(path)!r} is no ordinary file; {RESTORE}")
        yield handle
    finally:
        os.close(handle)


def _digest(handle: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(handle, _CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
