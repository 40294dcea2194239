"""Folders that are whole or absent: written beside their place under a temporary name and renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from emendo.errors import OutputError
from emendo.io.durable import flush, make_folder, settle


@contextmanager
def whole_folder(out: Path, destination: str = "choose another folder (--out)") -> Iterator[Path]:
    """A temporary folder to fill, which becomes `out` when the context ends without an error and is gone otherwise.

    Files are flushed to the disk before the rename, so that no crash leaves the name on half of them.

    Args:
        out: The folder to make: absent, or there and empty.
        destination: How the user chooses another place; ends every complaint.

    Raises:
        OutputError: `out` holds something already, or cannot be written.
    """
    out = Path(out).expanduser()
    check_absent(out, destination)
    try:
        make_folder(out.parent)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except (OSError, ValueError) as error:  # ValueError: a path that no folder can have
        raise OutputError(f"cannot write {str(out)!r}: {error}; {destination}") from error
    try:
        yield draft
        _settle(draft)
        # A rename onto a folder succeeds only where that is empty: nobody's files can be lost here.
        os.rename(draft, out)
        flush(out.parent)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {str(out)!r}: {error}; {destination}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_absent(out: Path, destination: str = "choose another folder (--out)") -> None:
    """Refuse a folder that holds something, before any work is done.

    Raises:
        OutputError: `out` is a file, a link, or a folder that is not empty.
    """
    out = Path(out).expanduser()
    try:
        other = out.is_symlink() or (out.exists() and not out.is_dir())
        full = not other and out.exists() and any(out.iterdir())
        mounted = not other and os.path.ismount(out)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {str(out)!r}: {error}; {destination}") from error
    if other:
        raise OutputError(f"{str(out)!r} is there and is no folder; {destination}")
    if mounted:  # found here, because nothing can be renamed onto it at the end
        raise OutputError(f"{str(out)!r} is a mount point; expected a folder in it: {str(out / 'new')!r}, say")
    if full:
        raise OutputError(f"{str(out)!r} holds files already and none are overwritten; {destination}")


def _settle(folder: Path) -> None:
    """Ordinary permissions for everything in the folder, and its bytes on the disk."""
    for at in [folder, *folder.rglob("*")]:
        settle(at)
