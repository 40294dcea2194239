"""Records from a file or from a pinned dataset of the Hugging Face hub, with an account of every row.

A row that cannot be used is reported with its line and reason and counted; it never stops the others. Nothing is
guessed from names of files: container and format are told from the content, or given by the caller. Whatever takes
facts reads them here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.arguments.words import shown
from emendo.datasets.encoding import MOST_BYTES, decoded
from emendo.datasets.fields import Fields
from emendo.datasets.formats import LOOKED_AT, DataFormat, format_named, recognise, recognised
from emendo.datasets.hub import PREFIX, open_hub
from emendo.datasets.json_rows import Row
from emendo.datasets.names import plain_names
from emendo.datasets.parquet_rows import MAGIC, parquet_rows
from emendo.datasets.rows import split_rows
from emendo.datasets.world import world_records
from emendo.datasets.wrapped import unwrap
from emendo.errors import DatasetError, RequestError
from emendo.io.plain_file import check_plain
from emendo.requests import EditRecord
from emendo.worlds import NAME, make_world

_SHOWN, _KINDS_SHOWN = 3, 6
"""Bad rows of one kind, and kinds of them, that an error quotes; the counts cover all."""

_PLACES = {"jsonl": "line {line}", "csv": "line {line}"}
_PLACES |= dict.fromkeys(("json", "json objects"), "row {row}, line {line}")
"""How a row is found again, by container; elsewhere by its number."""

_DEMO = "demo"
"""Names the packaged facts: a sample of the own format that is always there."""

_FEW = 20
"""Bad rows that an error lists all, whatever their kinds."""

_MOST_ROWS = 1_000_000
"""Of one data set; the largest published one has a quarter of that."""


@dataclass(frozen=True)
class Rejected:
    """A row that gave no record, or a part that was left out of one.

    Attributes:
        line: Line of the file on which the row begins; the number of the row where a source has no lines of rows.
        reason: Every problem of it, the first one first.
        row: Number of the row, from 1.
    """

    line: int
    reason: str
    row: int = field(default=0, compare=False)


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


@checked
def load_records(source: str | Path, *, format: str = "auto", strict: bool = False) -> LoadedRecords:
    """Every usable record of a data set.

    Args:
        source: A file (JSON, one JSON object a line, CSV, YAML, Parquet; gzip), or
            ``hf:owner/name@COMMIT[:CONFIG[:SPLIT]]`` for a dataset of the hub, or ``hf:./FOLDER[:CONFIG[:SPLIT]]`` for
            a local dataset folder; ``demo`` for the packaged facts that the demo model knows, or ``world`` for those
            that models called ``world:FAMILY`` know.
        format: A name from `FORMATS`, or ``"auto"`` to tell it from the rows.
        strict: Refuse the whole data set for one row that is no record: what is about to be written is checked more
            strictly than what is measured.

    Raises:
        DatasetError: It cannot be read, is of no known format, or none of its rows is a record, or under `strict` not
            all of them.
    """
    chosen = None if format == "auto" else format_named(format)
    name = str(source)
    if name.startswith(PREFIX):
        origin, rows = open_hub(name)
    elif name == NAME and not Path(name).exists():
        origin, rows = _open_world()
    elif name == _DEMO and not Path(name).exists():
        origin, rows = _open_file(Path(str(resources.files("emendo") / "data" / "demo_facts.jsonl")), name)
    else:
        origin, rows = _open_file(Path(source), name)
    return _read(origin, rows, chosen, strict)


@checked
def read_records(source: str | Path, *, format: str = "auto") -> list[EditRecord]:
    """Every record of a data set of which each row is one, such as the facts to write.

    Args:
        source: As for `load_records`.
        format: As for `load_records`.

    Raises:
        DatasetError: It cannot be read, or holds rows that are no records.
    """
    return list(load_records(source, format=format, strict=True).records)


@checked
def parse_records(text: str, source: str) -> list[EditRecord]:
    """Records from the text of a file; see `read_records`.

    Args:
        text: Decoded.
        source: How errors name it.

    Raises:
        DatasetError: It holds no record, or rows that are none.
    """
    return list(_read(*_open_text(text, source), None, strict=True).records)


def _read(origin: dict[str, Any], rows: Iterator[Row], chosen: DataFormat | None, strict: bool) -> LoadedRecords:
    """The records of rows that a source has, with the account of them."""
    name = str(origin["source"])
    first = list(islice(rows, LOOKED_AT))
    parsed = [row.value for row in first if row.value is not None]
    if len(first) == 1 and parsed and not recognised(parsed[0]) and (inner := unwrap(parsed[0], name)) is not None:
        origin = {**origin, "container": f"{origin['container']}, rows {inner[0]}"}
        first = [_inner_row(number, value) for number, value in enumerate(inner[1], start=1)]
        parsed = [row.value for row in first if row.value is not None]
    if not first:
        raise DatasetError(f"{name}: holds no row; {_EXPECTED}")
    if not parsed:
        bad = (Rejected(row.line, row.reason, number) for number, row in enumerate(chain(first, rows), start=1))
        raise _nothing_usable(origin, f"is a JSON object; {_EXPECTED}", list(islice(bad, _MOST_ROWS)), 0)
    chosen = chosen or recognise(parsed, name)
    records: list[EditRecord] = []
    rejected: list[Rejected] = []
    dropped: list[Rejected] = []
    count = 0
    for result in read_rows(chain(first, rows), chosen, dropped):
        count += 1
        if count > _MOST_ROWS:
            raise DatasetError(f"{name}: has more than {_MOST_ROWS:,} rows; divide it")
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            records += result
    account = {
        **origin,
        "format": chosen.name,
        "rows": count,
        "kept": count - len(rejected),
        "records": len(records),
        "rejected": count_reasons(rejected),
        "dropped": count_reasons(dropped),
    }
    if not records:
        reason = f"is a record of the format {chosen.name!r}; for another one: --format NAME (emendo data --formats)"
        raise _nothing_usable(origin, reason, rejected, 0)
    if strict and rejected:
        reason = f"cannot be used as a record of the format {chosen.name!r}, so all were left alone"
        raise _nothing_usable(origin, reason, rejected, count - len(rejected))
    return LoadedRecords(tuple(records), tuple(rejected), tuple(dropped), account)


_EXPECTED = (
    "expected a JSON list of objects, one object a line, or CSV whose first line names the columns, "
    "such as prompt,subject,target"
)


def _inner_row(number: int, value: object) -> Row:
    if isinstance(value, dict):
        return Row(number, value)
    return Row(number, None, f"expected an object with fields, found {type(value).__name__}")


@checked
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
            yield Rejected(row.line, row.reason, number)
            continue
        try:
            fields = Fields(plain_names(row.value))
            records = format.read(fields, f"{format.name}-{number}")
        except RequestError as error:
            yield Rejected(row.line, "; ".join(error.problems), number)
            continue
        again = [record.request.id for record in records if record.request.id in taken]
        if again:
            reason = f"its id is taken: {shown(again[0])} names the row of line {taken[again[0]]}"
            yield Rejected(row.line, reason, number)
            continue
        taken.update((record.request.id, row.line) for record in records if record.request.id)
        dropped += [Rejected(row.line, reason, number) for reason in fields.dropped]
        yield records


@checked
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
        path = path.expanduser()
        check_plain(path, handed=True)
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    except (OSError, ValueError, RuntimeError) as error:
        hint = (
            f"; for a dataset of the hub write {PREFIX}{name}@COMMIT" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
        )
        raise DatasetError(f"cannot read the data set {name!r}: {error}{hint} (--requests, --data)") from error
    if data.startswith(MAGIC):
        origin: dict[str, Any] = {"source": name, "container": "parquet"}
        rows = parquet_rows(data, name, MOST_BYTES)
    else:
        origin, rows = _open_text(decoded(data, name), name)
    return {**origin, "sha256": hashlib.sha256(data).hexdigest()}, rows


def _open_world() -> tuple[dict[str, Any], Iterator[Row]]:
    rows = [json.dumps(record.to_dict()) for record in world_records(make_world())]
    text = "\n".join(rows)
    origin, read = _open_text(text, NAME)
    return {**origin, "sha256": hashlib.sha256(text.encode()).hexdigest()}, read


def _open_text(text: str, name: str) -> tuple[dict[str, Any], Iterator[Row]]:
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise DatasetError(f"the data set {name!r} is empty")
    container, rows = split_rows(text, name)
    return {"source": name, "container": container}, rows


def _nothing_usable(origin: Mapping[str, Any], reason: str, rejected: Sequence[Rejected], kept: int) -> DatasetError:
    """The one message about bad rows: a few of each kind, and how many there are.

    Args:
        origin: Where they are from.
        reason: What they are not, or why they cannot be used.
        rejected: All of them.
        kept: Good rows beside them.
    """
    place = _PLACES.get(origin["container"], "row {row}")
    kinds: dict[str, list[str]] = {}
    for entry in rejected:
        kinds.setdefault(_kind(entry.reason), []).append(
            f"{place.format(line=entry.line, row=entry.row)}: {entry.reason}"
        )
    problems: list[str] = []
    for same in list(kinds.values())[:_KINDS_SHOWN]:
        problems += same[:_SHOWN]
        problems += [f"and {len(same) - _SHOWN:,} more like these"] if len(same) > _SHOWN else []
    left = sum(len(same) for same in list(kinds.values())[_KINDS_SHOWN:])
    problems += [f"and {left:,} more of {len(kinds) - _KINDS_SHOWN} other kinds"] if left else []
    if len(rejected) <= _FEW:
        problems = [f"{place.format(line=entry.line, row=entry.row)}: {entry.reason}" for entry in rejected]
    of = f"{len(rejected):,} of its {len(rejected) + kept:,} rows" if kept else f"none of its {len(rejected):,} row(s)"
    return DatasetError(f"{origin['source']}: {of} {reason}:", problems)
