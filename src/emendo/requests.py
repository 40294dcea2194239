"""What to edit: requests, records (a request with probes), their JSONL form and validation."""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.errors import ConflictError, RequestError

SLOT = "{}"

_MOST_BYTES = 512 * 2**20
"""Of a request file; all of CounterFact is 45 MB. A device or pipe without an end is refused here too."""

_MOST_LINE = 2**20
"""Characters of one record. Parsed, a short text of brackets takes thirty times its length in memory."""

_MOST_PROBLEMS = 1000
"""Bad lines after which reading stops: the file is something else."""

_FIELDS = ("id", "prompt", "subject", "target", "target_true", "paraphrase_prompts", "neighborhood_prompts")


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: `prompt` with its one slot filled by `subject` is to continue with `target`.

    Args:
        prompt: Text with exactly one ``{}`` where the subject goes, ending right before the target.
        subject: Fills the slot. The edit is keyed on its last token.
        target: The new continuation. A missing leading space is supplied where the script uses one.
        id: Label in reports and errors; the subject where empty.

    Raises:
        RequestError: A field is not a string, is empty or not valid Unicode, or the prompt has no slot or several.
    """

    prompt: str
    subject: str
    target: str
    id: str = ""

    def __post_init__(self) -> None:
        problems = _problems(self.prompt, self.subject, self.target, self.id)
        if problems:
            raise RequestError("this edit request cannot be used:", problems)

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def label(self) -> str:
        """How messages and reports name this request."""
        return self.id or self.subject

    def to_dict(self) -> dict[str, str]:
        """The request as it is stored in update files and reports."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "subject": self.subject,
            "target": self.target,
        }


@dataclass(frozen=True)
class EditRecord:
    """A request with the probes that judge it.

    Args:
        request: The fact to write.
        target_true: What the model should say before the edit; None where unknown.
        paraphrase_prompts: Other wordings that should give the new target too.
        neighborhood_prompts: Prompts about other subjects that should keep giving `target_true`.
    """

    request: EditRequest
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()


def _problems(prompt: object, subject: object, target: object, id: object = "") -> list[str]:
    """Every reason why these four fields do not make a request."""
    found: list[str] = []
    for name, value in (("prompt", prompt), ("subject", subject), ("target", target)):
        if not isinstance(value, str):
            found.append(f"{name} must be a string, found {type(value).__name__}: {_shown(value)}")
        elif not value.strip():
            found.append(f"{name} is empty")
        elif not _is_text(value):
            found.append(f"{name} holds half of a surrogate pair, which no tokenizer can read: {_shown(value)}")
    if not isinstance(id, str):
        found.append(f"id must be a string, found {type(id).__name__}: {_shown(id)}")
    elif not _is_text(id):
        found.append(f"id holds half of a surrogate pair: {_shown(id)}")
    if isinstance(prompt, str) and prompt.strip() and prompt.count(SLOT) != 1:
        found.append(f"prompt must hold exactly one {{}} for the subject, found {prompt.count(SLOT)}: {_shown(prompt)}")
    if isinstance(subject, str) and SLOT in subject:
        found.append(f"subject must not hold {{}}: {_shown(subject)}")
    return found


def _is_text(value: str) -> bool:
    """Whether a string can be encoded: JSON escapes can leave half of a surrogate pair in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A value as messages show it: shortened, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    return short.repr(value)


def check_requests(requests: Sequence[EditRequest]) -> None:
    """Refuse an empty batch, and requests that repeat or contradict each other.

    Raises:
        RequestError: There is no request.
        ConflictError: Two requests have the same prompt once the subject is filled in; every such group is named.
    """
    if not requests:
        raise RequestError("there is nothing to edit: the list of requests is empty")
    groups: dict[str, list[tuple[int, EditRequest]]] = {}
    for position, request in enumerate(requests, start=1):
        groups.setdefault(_plain(request.text), []).append((position, request))
    problems = []
    for same in groups.values():
        if len(same) == 1:
            continue
        where = ", ".join(f"#{position} → {request.target!r}" for position, request in same)
        kind = "repeated" if len({_plain(request.target) for _, request in same}) == 1 else "contradicting"
        problems.append(f"{kind}: {same[0][1].text!r} is asked by {where}")
    if problems:
        raise ConflictError(
            f"{len(problems)} fact(s) are requested more than once; keep one request for each:",
            problems,
        )


def _plain(text: str) -> str:
    """Text by which two requests are the same: spacing and the composition of accents do not tell them apart."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def record_from_dict(row: Mapping[str, Any]) -> EditRecord:
    """One parsed JSON object as a record.

    Raises:
        RequestError: With every problem of the row.
    """
    problems = [f"{name} is missing" for name in ("prompt", "subject", "target") if name not in row]
    # A stand-in for what is missing, so that the fields that are there are judged too.
    given = {"prompt": SLOT, "subject": "-", "target": "-", "id": "", **row}
    problems += _problems(given["prompt"], given["subject"], given["target"], given["id"])
    problems += [_unknown_field(name) for name in row if name not in _FIELDS]
    true = row.get("target_true")
    if true is not None and not _is_visible(true):
        problems.append(f"target_true must be a non-empty string, found {_shown(true)}")
    for name in ("paraphrase_prompts", "neighborhood_prompts"):
        probes = row.get(name, [])
        if not isinstance(probes, list) or not all(map(_is_visible, probes)):
            problems.append(f"{name} must be a list of non-empty strings, found {_shown(probes)}")
    if problems:
        raise RequestError("this row is not an edit record:", problems)
    return EditRecord(
        request=EditRequest(row["prompt"], row["subject"], row["target"], row.get("id", "")),
        target_true=true,
        paraphrase_prompts=tuple(row.get("paraphrase_prompts", ())),
        neighborhood_prompts=tuple(row.get("neighborhood_prompts", ())),
    )


def _is_visible(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_text(value)


def _unknown_field(name: object) -> str:
    close = difflib.get_close_matches(str(name), _FIELDS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_FIELDS)}"
    return f"unknown field {_shown(name)}; {hint}"


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
            record = _parse_line(line)
        except RequestError as error:
            problems.extend(f"line {number}: {problem}" for problem in error.problems)
            continue
        records.append(record)
        id = record.request.id
        if id and named.setdefault(id, number) != number:
            problems.append(f"line {number}: id {_shown(id)} is taken by line {named[id]}; reports name requests by it")
    if problems:
        raise RequestError(f"{source}: {len(problems)} problem(s); nothing was edited:", problems)
    if not records:
        raise RequestError(f"{source}: holds no request; expected one JSON object a line")
    return records


def _parse_line(line: str) -> EditRecord:
    if len(line) > _MOST_LINE:
        raise RequestError(
            "this line is too long:", [f"has {len(line):,} characters, expected at most {_MOST_LINE:,} a request"]
        )
    try:
        row = json.loads(line, object_pairs_hook=_unique_fields)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or an integer of thousands of digits
        raise RequestError("this line is not JSON:", [f"not JSON: {error}"]) from error
    if not isinstance(row, dict):
        raise RequestError("this line is no object:", [f"expected a JSON object, found {type(row).__name__}"])
    return record_from_dict(row)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose fields are each given once; the last would win otherwise, without a word."""
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        problems = [f"field {_shown(name)} is given more than once" for name in twice]
        raise RequestError("this row repeats fields:", problems)
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
