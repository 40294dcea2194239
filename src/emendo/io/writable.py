"""Whether a place can be written, asked before the work whose result goes there; nothing is left behind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from emendo.errors import OutputError

_FOLDER = "choose another folder (--out)"
_FILE = "choose another file (--out FILE)"


def check_writable(folder: Path, destination: str = _FOLDER) -> None:
    """Refuse a folder that could not be written.

    It is tried, with a folder of the name that a draft would have: permissions do not say what a read-only mount, a
    quota, a container or /proc allow, and not which names are too long.

    Args:
        folder: There, or to be made.
        destination: How the user chooses another place; ends every complaint.

    Raises:
        OutputError: The path or one of its parents is a file, or nothing can be made there.
    """
    at, missing = _existing(folder, destination)
    if not at.is_dir():
        raise OutputError(f"cannot write to {str(folder)!r}: {str(at)!r} is a file, expected a folder; {destination}")
    draft = None
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{missing[0] if missing else ''}-", dir=at))
        for name in missing[1:]:
            (draft / f".{name}-12345678").mkdir()
    except (OSError, ValueError) as error:  # ValueError: a path that no folder can have
        reason = "no permission" if isinstance(error, PermissionError) else getattr(error, "strerror", error)
        raise OutputError(f"cannot write to {str(folder)!r}: {reason} in {str(at)!r}; {destination}") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def check_writable_file(path: Path, destination: str = _FILE) -> None:
    """Refuse a file that could not be written.

    Args:
        path: There, to be replaced, or to be made.
        destination: How the user chooses another place; ends every complaint.

    Raises:
        OutputError: It is a folder, or its folder could not be written.
    """
    path = path.expanduser()
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {str(path)!r}: {error}; {destination}") from error
    if folder:
        raise OutputError(f"cannot write to {str(path)!r}: it is a folder, expected a file; {destination}")
    check_writable(path.parent, destination)
    if not path.exists():
        check_writable(path, destination)  # the name of its draft


def check_room(folder: Path, nbytes: int, destination: str = _FOLDER) -> None:
    """Refuse a folder on a disk with less room than a result takes.

    Args:
        folder: There, or to be made.
        nbytes: What will be written.
        destination: How the user chooses another place; ends the complaint.

    Raises:
        OutputError: Says both sizes.
    """
    at, _ = _existing(folder, destination)
    free = shutil.disk_usage(at).free
    if free < nbytes:
        raise OutputError(
            f"cannot write to {str(folder)!r}: {nbytes / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free "
            f"on its disk; make room, or {destination}"
        )


def _existing(folder: Path, destination: str) -> tuple[Path, list[str]]:
    """The nearest part of a path that is there, and the names below it that are not."""
    try:
        at, missing = folder.expanduser().absolute(), list[str]()
        while not at.exists():
            missing, at = [at.name, *missing], at.parent
    except (OSError, ValueError) as error:  # a name that is too long, for instance
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot write to {str(folder)!r}: {reason}; {destination}") from error
    return at, missing
