"""Files that are whole or absent: written beside their place under a temporary name and renamed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emendo.errors import InputError, OutputError
from emendo.io import strict_json
from emendo.io.durable import give_name, make_folder, settle
from emendo.io.printable import well_formed


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file for people, with what is no Unicode written out; see `write_bytes`."""
    write_bytes(path, well_formed(text).encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file that is compared with what reading it gives before it appears; see `write_bytes`.

    Raises:
        InputError: The document could not be read again; names the place.
    """
    try:
        content = strict_json.encoded(document, indent=2)
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error}") from error
    write_bytes(path, content + b"\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, which gets its name when its bytes are on the disk; the name is on the disk when this returns.

    Args:
        path: The file; its folder is made.
        content: What it will hold.

    Raises:
        OutputError: The folder cannot be written.
    """
    with whole_file(path) as draft:
        draft.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft to fill, which becomes `path` when the context ends without an error and is gone otherwise.

    Args:
        path: The file; its folder is made.

    Raises:
        OutputError: The folder cannot be written.
    """
    draft: Path | None = None
    try:
        make_folder(path.parent)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as stream:
            draft = Path(stream.name)
        yield draft
        settle(draft)
        give_name(draft, path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; choose a writable folder (--out)") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
