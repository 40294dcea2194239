"""Records as a file that people edit and every command reads: YAML with notes, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from emendo.arguments import checked
from emendo.errors import OutputError
from emendo.io.whole_file import write_text
from emendo.requests import EditRecord

SUFFIXES = (".yaml", ".yml", ".jsonl")

_WIDTH = 110


def check_suffix(path: Path) -> None:
    """Refuse a file whose name does not say its form.

    Raises:
        OutputError: It ends in none of `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{str(path)!r} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)} (--out)")


@checked
def write_records(
    path: str | Path, records: Sequence[EditRecord], *, head: Sequence[str] = (), notes: Sequence[str] = ()
) -> None:
    """Write records, whole or not at all; `read_records` gives them back.

    Args:
        path: Ends in ``.yaml`` or ``.yml``, or in ``.jsonl``.
        records: At least one.
        head: Lines of a comment at the top; JSON lines have none.
        notes: A line of comment above each record; likewise.

    Raises:
        OutputError: The name says no form, or the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix == ".jsonl":
        lines = (json.dumps(record.to_dict(), ensure_ascii=False) for record in records)
        write_text(path, "".join(f"{line}\n" for line in lines))
        return
    parts = ["".join(f"# {line}\n" for line in head)] if head else []
    for number, record in enumerate(records):
        note = f"# {notes[number]}\n" if number < len(notes) else ""
        rows = [record.to_dict()]
        parts.append(note + yaml.safe_dump(rows, allow_unicode=True, sort_keys=False, width=_WIDTH))
    write_text(path, "\n".join(parts))
