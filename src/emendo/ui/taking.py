"""Files to take away: all active edits as one update file, or as an adapter that other programs load."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.export import write_adapter
from emendo.io.whole_file import whole_file
from emendo.ledger import EditLedger

UPDATE, ADAPTER = "edits.safetensors", "adapter.zip"


_FOLDER = "emendo-ui-"


def own_folder() -> Path:
    """A new folder for these files; those of processes that were killed are taken away."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        number = left.name.removeprefix(_FOLDER).partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            shutil.rmtree(left, ignore_errors=True)  # follows no link, and what is somebody else's stays
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return True
    return True


def _check_edits(ledger: EditLedger) -> None:
    if not ledger.state():
        raise InputError("no edit is active, so there is nothing to take away; write a fact and keep it first")


def make_update(ledger: EditLedger, folder: Path) -> dict[str, Any]:
    """Write all active edits as one update file.

    Args:
        ledger: Has the edits.
        folder: Where; a file that is there is replaced.

    Raises:
        InputError: No edit is active.
    """
    _check_edits(ledger)
    update = ledger.merged()
    path = update.save(folder / UPDATE)
    return {"name": UPDATE, "bytes": Path(path).stat().st_size, "edits": len(ledger.state()), "id": update.id}


def make_adapter(ledger: EditLedger, session: EditSession, folder: Path) -> dict[str, Any]:
    """Write all active edits as one PEFT LoRA adapter, packed into one file.

    Args:
        ledger: Has the edits.
        session: Of the same model.
        folder: Where; a file that is there is replaced.

    Raises:
        InputError: No edit is active.
        ExportError: The adapter's rank is more than servers accept.
    """
    _check_edits(ledger)
    with session.preview_base() as lm:
        written = write_adapter(lm, [ledger.merged()], folder / "adapters", base_name=session.lm.name)
    with (
        whole_file(folder / ADAPTER) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as packed,  # random factors do not get smaller
    ):
        for path in sorted(written.path.rglob("*")):
            packed.write(path, f"{written.name}/{path.relative_to(written.path)}")
    return {
        "name": ADAPTER,
        "bytes": (folder / ADAPTER).stat().st_size,
        "edits": len(ledger.state()),
        "id": written.name,
        "rank": written.rank,
    }
