"""Files that survive a kill at any moment: JSON that is whole or absent, journals whose torn last line is dropped."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emendo.errors import ExperimentError, OutputError
from emendo.io import strict_json
from emendo.io.durable import flush, make_folder
from emendo.io.whole_file import write_bytes

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write a JSONL file; it appears whole or not at all.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_bytes(path, _lines(rows))


def append_lines(path: Path, rows: Sequence[Any]) -> None:
    """Add lines to a journal and wait until they are on the disk.

    Raises:
        OutputError: The file cannot be written.
    """
    content = _lines(rows)
    try:
        make_folder(path.parent)
        new = not path.exists()
        with path.open("ab") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            flush(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a writable folder (--out)") from error


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(strict_json.encoded(row) + b"\n" for row in rows)


def read_json(path: Path) -> Any:
    """A JSON document, or None where there is no file.

    Raises:
        ExperimentError: The file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ExperimentError(f"cannot read {str(path)!r}: {error}; delete it and run the command again") from error


def read_lines(path: Path) -> list[Any]:
    """The whole lines of a journal; a last line that a kill tore is dropped.

    Raises:
        ExperimentError: A line before the last is no JSON: something else than Emendo wrote here.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ExperimentError(f"cannot read {str(path)!r}: {error}; delete its folder and run again") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn, or nothing
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise ExperimentError(
                f"{str(path)!r} line {number} is no JSON ({error}); delete the folder of this cell and run again"
            ) from error
    return rows


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Only one process works in a folder, or only such as share it; a killed one leaves no lock behind.

    Args:
        folder: It is made.
        shared: Others may come in that share it as well.

    Raises:
        ExperimentError: Another process is at work here.
        OutputError: The folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: two runs of one folder are the user's to avoid
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+")  # network file systems want both rights for either kind of lock
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error}; choose a writable folder (--out)") from error
    with stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ExperimentError(
                f"another process is at work in {str(folder)!r}; wait for it, or choose another folder (--out); "
                "several processes share a folder where all of them are started with --join"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OutputError(f"cannot lock {str(folder)!r}: {error}; choose another folder (--out)") from error
            # A file system without locks: two runs of one folder are the user's to avoid; --join needs none.
        yield
