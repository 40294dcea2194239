"""What the commands that write a page have in common: how they begin, and the updates that they are asked about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emendo.errors import OutputError

if TYPE_CHECKING:
    from emendo.updates.update import ModelUpdate


def check_place(out: Path, file: str, *, overwrite: bool, pictures: bool = True) -> None:
    """Refuse, before anything is computed, what would fail when the page is written.

    Args:
        out: Folder of the page.
        file: Of it, the file that says that a result is there.
        overwrite: Replace it.
        pictures: Whether PNG files will be drawn.

    Raises:
        OutputError: The folder cannot be written, or holds a result.
        ReportError: A package of the extra `report` is missing.
    """
    from emendo.io.writable import check_writable
    from emendo.report.packages import check_packages

    check_packages(pictures=pictures)
    check_writable(out)
    if not overwrite and (out / file).exists():
        raise OutputError(
            f"{str(out)!r} holds a result already ({file}); choose another folder (--out) or replace it (--overwrite)"
        )


def load_update(path: Path) -> ModelUpdate:
    """The update of a file, or of a folder that `emendo edit` wrote.

    Raises:
        UpdateFileError: It is missing, damaged or something else.
    """
    from emendo.updates.update import ModelUpdate

    return ModelUpdate.load(update_file(path))


def update_file(path: Path) -> Path:
    """The file of an update: itself, or the one of a folder that `emendo edit` wrote."""
    return path / "update.safetensors" if path.is_dir() else path
