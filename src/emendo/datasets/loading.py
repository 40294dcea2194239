"""Records from a file or from a pinned dataset of the Hugging Face hub, with an account of every row.

A row that cannot be used is reported with its line and reason and counted; it never stops the others. Nothing is
guessed from names of files: container and format are told from the content, or given by the caller.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.datasets.fields import Fields
from emendo.datasets.formats import DataFormat, format_named, recognise
from emendo.datasets.hub import PREFIX, open_hub
from emendo.datasets.rows import Row, split_rows
from emendo.errors import DatasetError, RequestError
from emendo.requests import EditRecord, shown

_MOST_BYTES = 512 * 2**20
"""Of a file, which is read whole; all of CounterFact is 45 MB. A device without an end is refused here too."""

_SHOWN, _KINDS_SHOWN = 3, 6
"""Bad rows of one kind, and kinds of them, that an error quotes; the counts cover all."""


@dataclass(frozen=True)
class Rejected:
    """A row that gave no record, or a part that was left out of one.

    Attributes:
        line: Line of the file on which the row begins; the number of the row in a dataset of the hub.
        reason: Every problem of it, the first one first.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class LoadedRecords:
    """What a data set holds.

    Attributes:
        records: The usable records, in the order of the data set.
        rejected: Rows that gave none.
        dropped: Probes that were left out of records, because they have no prompt or no answer.
        source: Where it comes from, for reports: `source` (path or id), `sha256`, `format`, `container`, counts of
            `rows`, `kept` rows and `records`, and `rejected` and `dropped` by reason. For the hub also `revision`,
            `config`, `split` and the library's `fingerprint`; `sha256` is then that of the rows.
    """

    records: tuple[EditRecord, ...]
    rejected: tuple[Rejected, ...]
    dropped: tuple[Rejected, ...]
    source: dict[str, Any]


def load_records(source: str | Path, *, format: str = "auto") -> LoadedRecords:
    """Every usable record of a data set.

    Args:
        source: A UTF-8 file (JSON list, one JSON object a line, or CSV), or ``hf:owner/name@COMMIT[:CONFIG[:SPLIT]]``
            for a dataset of the hub, or ``hf:./FOLDER[:CONFIG[:SPLIT]]`` for a local dataset folder.
        format: A name from `FORMATS`, or ``"auto"`` to tell it from the rows.

    Raises:
        DatasetError: It cannot be read, is of no known format, or none of its rows is a record.
    """
    chosen = None if format == "auto" else format_named(format)
    name = str(source)
    if name.startswith(PREFIX):
        origin, rows = open_hub(name)
    else:
        origin, rows = _open_file(Path(source), name)
    listed = list(rows)
    parsed = [row.value for row in listed if row.value is not None]
    if not parsed:
        raise _nothing_usable(name, "is a JSON object; expected a JSON list, one object a line, or CSV", listed)
    chosen = chosen or recognise(parsed, name)
    records: list[EditRecord] = []
    rejected: list[Rejected] = []
    dropped: list[Rejected] = []
    for result in read_rows(listed, chosen, dropped):
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            records += result
    account = {
        **origin,
        "format": chosen.name,
        "rows": len(listed),
        "kept": len(listed) - len(rejected),
        "records": len(records),
        "rejected": count_reasons(rejected),
        "dropped": count_reasons(dropped),
    }
    if not records:
        reason = f"is a record of the format {chosen.name!r}; for another one: --format NAME (emendo data --formats)"
        raise _nothing_usable(name, reason, rejected)
    return LoadedRecords(tuple(records), tuple(rejected), tuple(dropped), account)


def read_rows(
    rows: Iterable[Row], format: DataFormat, dropped: list[Rejected]
) -> Iterator[list[EditRecord] | Rejected]:
    """The records of each row, or why it has none, one row at a time.

    An id that an earlier row has taken rejects the row: reports name records by it. Rows of published formats
    without ids get the format's name and the number of the row.

    Args:
        rows: From `split_rows` or the hub.
        format: How to read them.
        dropped: Probes that were left out are added here.
    """
    taken: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if row.value is None:
            yield Rejected(row.line, row.reason)
            continue
        fields = Fields(row.value)
        try:
            records = format.read(fields, f"{format.name}-{number}")
        except RequestError as error:
            yield Rejected(row.line, "; ".join(error.problems))
            continue
        again = [record.request.id for record in records if record.request.id in taken]
        if again:
            yield Rejected(row.line, f"its id is taken: {shown(again[0])} names the row of line {taken[again[0]]}")
            continue
        taken.update((record.request.id, row.line) for record in records if record.request.id)
        dropped += [Rejected(row.line, reason) for reason in fields.dropped]
        yield records


def count_reasons(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many rows have each reason, most frequent first; a row counts once, under its first problem.

    What a reason quotes of the row is left out, so that equal problems are counted together.
    """
    return dict(Counter(_kind(entry.reason) for entry in rejected).most_common())


def _kind(reason: str) -> str:
    return re.split(r", found |: |; | \(char|\[\d", reason)[0]


def _open_file(path: Path, name: str) -> tuple[dict[str, Any], Iterator[Row]]:
    """The file's origin and its rows."""
    try:
        with path.expanduser().open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    except (OSError, ValueError, RuntimeError) as error:
        hint = (
            f"; for a dataset of the hub write {PREFIX}{name}@COMMIT" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        )
        raise DatasetError(f"cannot read the data set {name!r}: {error}{hint}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise DatasetError(
            f"the data set {name!r} is not UTF-8 but {guess} ({error.reason} at byte {error.start}); convert it, "
            f"such as with: iconv -t UTF-8 -f {'UTF-16' if guess == 'UTF-16' else 'ENCODING'} FILE"
        ) from error
    if not text.strip():
        raise DatasetError(f"the data set {name!r} is empty")
    container, rows = split_rows(text, name)
    return {"source": name, "container": container, "sha256": hashlib.sha256(data).hexdigest()}, rows


def _nothing_usable(name: str, reason: str, rejected: Sequence[Rejected | Row]) -> DatasetError:
    kinds: dict[str, list[str]] = {}
    for entry in rejected:
        kinds.setdefault(_kind(entry.reason), []).append(f"line {entry.line}: {entry.reason}")
    problems: list[str] = []
    for same in list(kinds.values())[:_KINDS_SHOWN]:
        problems += same[:_SHOWN]
        problems += [f"and {len(same) - _SHOWN} more like these"] if len(same) > _SHOWN else []
    left = sum(len(same) for same in list(kinds.values())[_KINDS_SHOWN:])
    problems += [f"and {left} more of {len(kinds) - _KINDS_SHOWN} other kinds"] if left else []
    return DatasetError(f"{name}: none of its {len(rejected)} row(s) {reason}:", problems)
