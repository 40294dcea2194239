"""What makes a new file outlast a power cut: its bytes on the disk, then its name, then the folder that holds that."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def settle(path: Path) -> None:
    """Give a draft the permissions of any new file or folder, and put its bytes on the disk."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask)
    flush(path)


def give_name(draft: Path, path: Path) -> None:
    """Rename a settled draft; what is written afterwards anywhere can count on the file."""
    os.replace(draft, path)
    flush(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each with its name on the disk."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in reversed(missing):
        flush(part.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # where a folder cannot be opened; renames are journalled there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no fsync of a folder, and there is no other way to ask for it.
        if not folder or error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
