"""Small files that are whole or absent: written beside their place under a temporary name and renamed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from emendo.errors import OutputError
from emendo.storage.durable import give_name, make_folder, settle


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, which gets its name when its bytes are on the disk; the name is on the disk when this returns.

    Args:
        path: The file; its folder is made.
        content: What it will hold.

    Raises:
        OutputError: The folder cannot be written.
    """
    draft: Path | None = None
    try:
        make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as stream:
            draft = Path(stream.name)
            stream.write(content)
        settle(draft)
        give_name(draft, path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a writable folder (--out)") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
