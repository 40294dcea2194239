"""New files in place of old ones: the new are whole and on the disk before any of the old goes.

Where it can be, the draft takes the name of the folder in one step (the system's exchange of two names), so that a
kill at any instant leaves the old files or the new ones. Where a folder cannot be exchanged (it is a mount point, the
current folder, somebody else's, or holds folders), each file gets its name by itself, the old ones are kept until all
have it, and an error puts them back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from emendo.errors import InputError, OutputError
from emendo.io.durable import flush, make_folder, settle

_KEPT = ".before"
"""Folder in a draft for the files that the new ones take the names of."""


@contextmanager
def replaced_files(out: Path, destination: str = "choose another folder (--out)") -> Iterator[Path]:
    """A temporary folder to fill with files, which are in `out` when the context ends without an error.

    They take the place of files of the same names there, together; other files stay as they are. After an error, `out`
    is as it was.

    Args:
        out: The folder; made where there is none.
        destination: How the user chooses another place; ends every complaint.

    Raises:
        OutputError: The folder cannot be written; what was in it is there, and where, if not in its place.
    """
    out = Path(out).expanduser()
    draft: Path | None = None
    done = False
    try:
        out = out.resolve()  # a link to a folder stays one
        draft = _draft_for(out)
        yield draft
        settle(draft)
        for file in draft.iterdir():
            settle(file)
        _give_place(draft, out)
        done = True
    except _UnsettledError as error:
        draft = None  # it may hold the old files
        raise OutputError(f"{str(out)!r} {error}") from error
    except InputError as error:  # of a file in the draft: its path says nothing to anybody
        raise type(error)(str(error).replace(str(draft), str(out))) from error
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: a path that no folder can have
        raise OutputError(
            f"cannot write {str(out)!r}: {error}; what it held is there as it was. Make room, or {destination}"
        ) from error
    finally:
        if draft is not None and (done or not (draft / _KEPT).exists()):
            shutil.rmtree(draft, ignore_errors=True)


def _draft_for(out: Path) -> Path:
    """A new folder on the file system of `out`: beside it, or inside where it cannot be exchanged."""
    if out.exists() and not _exchangeable(out):
        return Path(tempfile.mkdtemp(prefix=".emendo-new-", dir=out))
    make_folder(out.parent)
    return Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))


def _exchangeable(out: Path) -> bool:
    """Whether another folder may take the name of this one, and nobody notices but by what it holds."""
    found, above = out.stat(), out.parent.stat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_dev == above.st_dev
        and (os.name != "posix" or found.st_uid == os.geteuid())
        and os.access(out.parent, os.W_OK | os.X_OK)
        and not os.path.samefile(out, os.curdir)
        and not any(stat.S_ISDIR((out / name).lstat().st_mode) for name in os.listdir(out))
    )


class _UnsettledError(Exception):
    """Something is not where it belongs, or not known to be: what to say of the folder, and where the old files are."""


def _give_place(draft: Path, out: Path) -> None:
    if not out.exists():
        os.rename(draft, out)
        try:
            flush(out.parent)
        except OSError as error:
            raise _UnsettledError(f"is written, but the disk did not confirm it ({error}); look at the disk") from error
    elif draft.parent == out or not _exchanged(draft, out):
        _replace_each(draft, out)


def _exchanged(draft: Path, out: Path) -> bool:
    """Exchange the folders, the draft with links to the other files of the old one; False where that cannot be."""
    new = os.listdir(draft)
    try:
        shutil.copymode(out, draft)
        for name in os.listdir(out):
            if name not in new:
                os.link(out / name, draft / name, follow_symlinks=False)
        flush(draft)
        exchange(draft, out)
    except OSError as error:
        for name in set(os.listdir(draft)) - set(new):
            (draft / name).unlink()
        if error.errno in _CANNOT:
            return False
        raise
    try:
        for name in os.listdir(draft):  # what somebody put there meanwhile; the old files go with the draft
            if not os.path.lexists(out / name):
                os.rename(draft / name, out / name)
        flush(out.parent)
    except OSError as error:
        raise _UnsettledError(
            f"is written, but the disk did not confirm it ({error}); what it held before is in {str(draft)!r}"
        ) from error
    return True


def _replace_each(draft: Path, out: Path) -> None:
    """Give each file its name in `out`, the old one kept aside until all have theirs; on an error, put those back."""
    kept = draft / _KEPT
    names = sorted(os.listdir(draft))
    new = {name: _identity(draft / name) for name in names}
    os.mkdir(kept)
    try:
        for name in names:
            if os.path.lexists(out / name):
                _keep(out / name, kept / name)
            os.replace(draft / name, out / name)
        flush(out)
    except BaseException as error:
        try:
            for name in names:
                if os.path.lexists(kept / name):
                    os.replace(kept / name, out / name)
                elif _identity(out / name) == new[name]:  # there was none before
                    os.unlink(out / name)
            shutil.rmtree(kept)
        except OSError as again:
            raise _UnsettledError(
                f"cannot be written: {error}; nor could what it held be put back: {again}. Those files are in "
                f"{str(kept)!r}; copy them from there"
            ) from error
        raise
    shutil.rmtree(kept, ignore_errors=True)


def _keep(file: Path, aside: Path) -> None:
    """A second name for a file, so that the first can be taken in one step; its only one where there are no links."""
    try:
        os.link(file, aside, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        os.rename(file, aside)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EXDEV, errno.EBUSY, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems answer that have no exchange, or no links."""


def exchange(one: Path, other: Path) -> None:
    """Give each of two files or folders the other's name, in one step.

    Raises:
        OSError: ENOSYS where this system cannot; otherwise what it says.
    """
    arguments: tuple[object, ...]
    if sys.platform.startswith("linux"):
        name, here, swap = "renameat2", ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
        arguments = (here, os.fsencode(one), here, os.fsencode(other), swap)
    else:
        name, arguments = "renamex_np", (os.fsencode(one), os.fsencode(other), ctypes.c_uint(2))  # RENAME_SWAP
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError) as error:  # TypeError: Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if call(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))
