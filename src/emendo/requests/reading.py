"""Records from JSONL: one JSON object a line, every bad line reported with its number and reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emendo.errors import RequestError
from emendo.requests.hints import SLOT, shown, unknown_field
from emendo.requests.records import (
    FIELDS,
    PROMPT_LISTS,
    EditRecord,
    EditRequest,
    Probe,
    is_text,
    is_visible,
    request_problems,
)

_FIELDS = frozenset(FIELDS)
_PROBE_FIELDS = ("kind", "prompt", "answers", "group")

_MOST_BYTES = 512 * 2**20
"""Of a request file; all of CounterFact is 45 MB. A device or pipe without an end is refused here too."""

_MOST_LINE = 2**20
"""Characters of one record. Parsed, a short text of brackets takes thirty times its length in memory."""

_MOST_PROBLEMS = 1000
"""Bad lines after which reading stops: the file is something else."""


def record_from_dict(row: Mapping[str, Any]) -> EditRecord:
    """One parsed JSON object as a record.

    Raises:
        RequestError: With every problem of the row.
    """
    request, problems = _read_request(row)
    if not row.keys() <= _FIELDS:
        problems += [unknown_field(name, FIELDS) for name in row if name not in _FIELDS]
    for name in ("target_true", "relation"):
        if row.get(name) is not None and not is_visible(row[name]):
            problems.append(f"{name} must be a non-empty string, found {shown(row[name])}")
    lists: dict[str, tuple[str, ...]] = {}
    for name in PROMPT_LISTS:
        prompts = row.get(name, ())
        if prompts != () and not (isinstance(prompts, list) and all(map(is_visible, prompts))):
            problems.append(f"{name} must be a list of non-empty strings, found {shown(prompts)}")
        else:
            lists[name] = tuple(prompts)
    case = row.get("case", "")
    if not isinstance(case, str) or not is_text(case):
        problems.append(f"case must be a string, found {shown(case)}")
    probes, bad_probes = _read_probes(row["probes"]) if "probes" in row else ((), [])
    if request is None or problems or bad_probes:
        raise RequestError("this row is not an edit record:", problems + bad_probes)
    return EditRecord(
        request=request,
        target_true=row.get("target_true"),
        **lists,
        relation=row.get("relation"),
        case=case,
        probes=probes,
    )


def _read_request(row: Mapping[str, Any]) -> tuple[EditRequest | None, list[str]]:
    """The request of a row, or everything that is wrong with its fields."""
    missing = [f"{name} is missing" for name in ("prompt", "subject", "target") if name not in row]
    if missing:
        # A stand-in for what is missing, so that the fields that are there are judged too; a subject that no prompt
        # holds, so that none is suggested.
        given = {"prompt": SLOT, "subject": "\0", "target": "-", "id": "", **row}
        return None, missing + request_problems(given["prompt"], given["subject"], given["target"], given["id"])
    try:
        return EditRequest(row["prompt"], row["subject"], row["target"], row.get("id", "")), []
    except RequestError as error:
        return None, list(error.problems)


def _read_probes(rows: object) -> tuple[tuple[Probe, ...], list[str]]:
    """The probes of a row, and what is wrong with those that are none."""
    if not isinstance(rows, list):
        return (), [f"probes must be a list of objects, found {shown(rows)}"]
    probes: list[Probe] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            problems.append(f"probe {number} must be an object, found {shown(row)}")
            continue
        found = [f"{name} is missing" for name in ("kind", "prompt", "answers") if name not in row]
        found += [unknown_field(name, _PROBE_FIELDS) for name in row if name not in _PROBE_FIELDS]
        if not found:
            answers = row["answers"]
            try:
                answers = tuple(answers) if isinstance(answers, list) else answers
                probes.append(Probe(row["kind"], row["prompt"], answers, row.get("group", "")))
            except RequestError as error:
                found = list(error.problems)
        problems += [f"probe {number}: {problem}" for problem in found]
    return tuple(probes), problems


def parse_records(text: str, source: str) -> list[EditRecord]:
    """Records from JSONL text; blank lines are skipped.

    Args:
        text: One JSON object a line.
        source: How errors name the text, a path for instance.

    Raises:
        RequestError: With every bad line, its number and the reason.
    """
    records: list[EditRecord] = []
    problems: list[str] = []
    named: dict[str, int] = {}
    # Not splitlines(): that also splits at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        if len(problems) >= _MOST_PROBLEMS:
            problems.append(f"reading stopped before line {number}: is this a file of requests?")
            break
        try:
            record = record_from_dict(parse_object(line))
        except RequestError as error:
            problems.extend(f"line {number}: {problem}" for problem in error.problems)
            continue
        records.append(record)
        id = record.request.id
        if id and named.setdefault(id, number) != number:
            problems.append(f"line {number}: id {shown(id)} is taken by line {named[id]}; reports name requests by it")
    if problems:
        raise RequestError(f"{source}: {len(problems)} problem(s); nothing was edited:", problems)
    if not records:
        raise RequestError(f"{source}: holds no request; expected one JSON object a line")
    return records


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose fields are each given once; the last would win otherwise, without a word."""
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        problems = [f"field {shown(name)} is given more than once" for name in twice]
        raise RequestError("this row repeats fields:", problems)
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)
"""Made once: `json.loads` makes one for each line."""


def parse_object(line: str) -> dict[str, Any]:
    """One JSON object in which no field is given twice.

    Raises:
        RequestError: The text is not JSON, is no object, or repeats a field.
    """
    if len(line) > _MOST_LINE:
        raise RequestError(
            "this line is too long:", [f"has {len(line):,} characters, expected at most {_MOST_LINE:,} a request"]
        )
    try:
        row = _DECODER.decode(line)
    except RequestError:
        raise
    except json.JSONDecodeError as error:
        raise RequestError("this line is not JSON:", [f"not JSON: {error.msg} at column {error.colno}"]) from error
    except (ValueError, RecursionError) as error:  # ValueError: an integer of thousands of digits
        raise RequestError("this line is not JSON:", [f"not JSON: {error}"]) from error
    if not isinstance(row, dict):
        raise RequestError("this line is no object:", [f"expected a JSON object, found {type(row).__name__}"])
    return row


def read_records(path: str | Path) -> list[EditRecord]:
    """Records from a JSONL file in UTF-8.

    Raises:
        RequestError: The file is missing, not UTF-8, or holds bad lines (all are listed).
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise RequestError(
            f"cannot read requests from {str(path)!r}: {error}; "
            "expected a UTF-8 file with one JSON object a line (--requests FILE)"
        ) from error
    return parse_records(text, str(path))
