"""Folders of a cache that several processes share: whole or absent, verified in every file, never taken from a reader.

An entry holds a manifest with the SHA-256 of each of its files. A sound entry is never touched again; one that is
damaged is moved aside, under a lock, and replaced.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from emendo.errors import OutputError
from emendo.io.durable import flush, make_folder, settle
from emendo.io.plain_file import read_plain_text

MANIFEST = "emendo.json"

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def is_sound(folder: Path) -> bool:
    """Whether a folder holds what its manifest says, file for file and nothing else."""
    try:
        files = json.loads(read_plain_text(folder / MANIFEST))["files"]
        found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        return found == {*files, MANIFEST} and all(file_sha256(folder / name) == files[name] for name in files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


@contextmanager
def entry_lock(folder: Path, destination: str) -> Iterator[None]:
    """The right to make an entry; others wait for it, and whoever had it has left a sound entry or none.

    The lock file stays, beside the cache's folders. The operating system frees the lock of a process that dies. The
    thread that has it may take it again.

    Args:
        folder: The entry.
        destination: How the user chooses another place; ends every complaint.

    Raises:
        OutputError: The cache cannot be written.
    """
    path = folder.parent.parent / "locks" / f"{folder.name}.lock"
    try:
        make_folder(path.parent)
        lock = FileLock(path, is_singleton=True)
        try:
            lock.acquire()
        except (NotImplementedError, OSError) as error:
            # Some network file systems have no locks: two processes may then do the same work, and one keeps it.
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; {destination}") from error
    try:
        yield
    finally:
        if lock.is_locked:
            lock.release()


def store_folder(folder: Path, fill: Callable[[Path], Mapping[str, Any]], destination: str) -> Path:
    """Make an entry unless there is a sound one.

    Args:
        folder: The entry.
        fill: Writes its files into a folder; gives what else the manifest says.
        destination: How the user chooses another place; ends every complaint.

    Raises:
        OutputError: The cache cannot be written.
    """
    with entry_lock(folder, destination):
        if is_sound(folder):
            return folder
        try:
            make_folder(folder.parent)
            for left in folder.parent.glob(f".{folder.name}-*"):  # by a process that was killed: we have the lock
                shutil.rmtree(left, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise OutputError(f"cannot write {str(folder)!r}: {error}; {destination}") from error
        try:
            about = fill(draft)
            files = {path.name: file_sha256(path) for path in sorted(draft.iterdir())}
            (draft / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=2), encoding="utf-8")
            for path in (*draft.iterdir(), draft):
                settle(path)
            _put(draft, folder)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write {str(folder)!r}: {error}; {destination}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _put(draft: Path, folder: Path) -> None:
    """Give a draft its name. What has the name is damaged; who has a file of it open keeps that."""
    aside = draft.with_name(f"{draft.name}-replaced")
    if os.path.lexists(folder):
        os.rename(folder, aside)
    try:
        os.rename(draft, folder)
    except OSError:
        # Where there are no locks, another process may have been first; its entry is as good as ours.
        if not is_sound(folder):
            raise
    flush(folder.parent)
    if aside.is_symlink() or aside.is_file():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
