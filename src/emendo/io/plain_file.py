"""Small files that somebody else may have made: only plain ones are opened, and only up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 64 * 2**20
"""Of a configuration, an index or a vocabulary; the largest tokenizer.json that is in use has 35 MB."""


_HANDED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


def check_plain(path: Path, most: int | None = None, *, handed: bool = False) -> int:
    """Refuse what is no plain file, before it is opened: a pipe waits for ever, and a device has no end.

    Args:
        path: The file, or a link to one.
        most: Bytes that it may have; None: any number.
        handed: Take a pipe that the caller's shell has opened, as ``<(command)`` and ``/dev/stdin`` are.

    Returns:
        Its size in bytes.

    Raises:
        OSError: It is missing, a folder, a pipe, a socket or a device.
        ValueError: It has more than `most` bytes, or no file can have this path.
    """
    found = os.stat(path)
    if handed and stat.S_ISFIFO(found.st_mode) and os.path.abspath(path).startswith(_HANDED):
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{_kind(found.st_mode)}, expected a plain file")
    if most is not None and found.st_size > most:
        raise ValueError(f"{found.st_size:,} bytes, expected at most {most:,}")
    return found.st_size


def read_plain_text(path: Path, most: int = MOST_BYTES, encoding: str = "utf-8-sig") -> str:
    """The text of a plain file, whose size is checked before it is read; ends of lines as in text mode.

    Args:
        path: The file, or a link to one.
        most: Bytes that it may have.
        encoding: Of the text.

    Raises:
        OSError: See `check_plain`.
        ValueError: It is too large, or not text in that encoding.
    """
    check_plain(path, most)
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:  # it grew meanwhile, or is one of the files of /proc, whose size is zero
        raise ValueError(f"more than {most:,} bytes")
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return f"it is {kinds.get(stat.S_IFMT(mode), 'something else')}"
