"""Names that clients use, and the adapter that each stands for now: a small JSON file, replaced in one step.

vLLM and SGLang know adapters by name and keep caches by it, so that a changed adapter under an old name has answered
from the old one's cache (vLLM's issue 42125). A name of an adapter is therefore of its content and never used again
for another, and what clients call it is kept outside of the server, here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from emendo.arguments import checked
from emendo.errors import InputError, OutputError
from emendo.io import strict_json
from emendo.io.durable import make_folder
from emendo.io.plain_file import read_plain_text
from emendo.io.whole_file import write_json

FILE = "aliases.json"
_FORMAT = "emendo.aliases"
_WAIT = 60.0


@dataclass(frozen=True)
class Alias:
    """What a name stands for.

    Attributes:
        server: Address of the server.
        engine: Its kind.
        model: Name of the adapter, or of the base.
        path: Where the server reads the adapter; empty of the base.
        before: The same of what it stood for before: name and path; None where there was nothing.
    """

    server: str
    engine: str
    model: str
    path: str = ""
    before: tuple[str, str] | None = None


@checked
def served_name(folder: str | Path, alias: str) -> str:
    """The model that a client asks for now, as the server knows it.

    Args:
        folder: Where `emendo push` keeps adapters (--out).
        alias: The name.

    Raises:
        InputError: There is no such alias, or the file is damaged.
    """
    found = read_aliases(Path(folder))
    if alias not in found:
        raise InputError(f"no alias {alias!r} in {str(folder)!r}; found {', '.join(sorted(found)) or 'none'} (--alias)")
    return found[alias].model


def read_aliases(folder: Path) -> dict[str, Alias]:
    """All aliases of a folder; none where it has no file of them.

    Raises:
        InputError: The file is damaged.
    """
    path = folder.expanduser() / FILE
    if not path.exists():
        return {}
    try:
        document = strict_json.loads(read_plain_text(path))
        if document["format"] != _FORMAT:
            raise ValueError(f"a format {document['format']!r}")
        return {str(name): _alias(row) for name, row in document["aliases"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} is no file of aliases ({error}); restore it, or remove it to begin anew"
        ) from error


def set_alias(folder: Path, name: str, alias: Alias) -> None:
    """Let a name stand for something else, in one step.

    Raises:
        OutputError: The folder cannot be written.
    """
    rows = {**read_aliases(folder), name: alias}
    document = {"format": _FORMAT, "aliases": {key: asdict(rows[key]) for key in sorted(rows)}}
    write_json(folder.expanduser() / FILE, document)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Nobody else changes the aliases of a folder, or what they stand for, in the meantime.

    Raises:
        OutputError: Somebody else has done so for a minute, or the folder cannot be written.
    """
    folder = folder.expanduser()
    try:
        make_folder(folder)
        lock = FileLock(folder / f".{FILE}.lock", timeout=_WAIT)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another push has held {str(folder)!r} for {_WAIT:g} s; wait for it, or choose another folder (--out)"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error}; choose another folder (--out)") from error
    try:
        yield
    finally:
        lock.release()


def _alias(row: dict[str, Any]) -> Alias:
    before = row["before"]
    server, engine, model, path = (row[name] for name in ("server", "engine", "model", "path"))
    texts = [server, engine, model, path, *(before or ())]
    if not all(isinstance(text, str) for text in texts) or (before is not None and len(before) != 2):
        raise ValueError("an entry that is none")
    return Alias(server, engine, model, path, None if before is None else (before[0], before[1]))
