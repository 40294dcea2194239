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

PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
"""The fields of a record that are lists of prompts."""

FIELDS = ("id", "prompt", "subject", "target", "target_true", *PROMPT_LISTS, "relation", "case", "probes")
"""The fields of a record in its own JSONL form."""

PROBE_KINDS = {
    "portability": "what follows from the new fact, asked in one step: aliases, inverse and derived relations",
    "multi_hop": "a question whose answer needs several facts, the new ones among them",
    "single_hop": "one step of such a question, as it is after the edit",
    "locality": "what the edit must not touch",
}
"""What a probe may ask, and what each kind means."""

_PROBE_FIELDS = ("kind", "prompt", "answers", "group")


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
class Probe:
    """One question about the edited model that is neither a paraphrase nor a neighborhood prompt.

    Args:
        kind: One of `PROBE_KINDS`.
        prompt: Asked as it stands; the answer continues it.
        answers: Spellings of the right answer, the usual one first; any of them counts.
        group: The data set's own name for this sort of probe, such as ``"Subject_Aliasing"``.

    Raises:
        RequestError: With every problem of the four fields.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    group: str = ""

    def __post_init__(self) -> None:
        problems = _probe_problems(self.kind, self.prompt, self.answers, self.group)
        if problems:
            raise RequestError("this probe cannot be used:", problems)

    def to_dict(self) -> dict[str, Any]:
        """The probe as a row holds it."""
        row = {"kind": self.kind, "prompt": self.prompt, "answers": list(self.answers)}
        return {**row, "group": self.group} if self.group else row


@dataclass(frozen=True)
class EditRecord:
    """A request with the probes that judge it.

    Args:
        request: The fact to write.
        target_true: What the model should say before the edit; None where unknown.
        paraphrase_prompts: Other wordings that should give the new target too.
        neighborhood_prompts: Prompts about other subjects that should keep giving `target_true`.
        attribute_prompts: Prompts about other subjects of which the new target is true, before and after.
        generation_prompts: Beginnings of texts about the subject, to be continued freely.
        relation: Identifier of the relation, such as Wikidata's ``"P103"``; None where unknown.
        case: Records with the same non-empty case are one test and stay together: a multi-hop probe of one of them
            holds only after all of them are written.
        probes: Further questions with their answers.
    """

    request: EditRequest
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation: str | None = None
    case: str = ""
    probes: tuple[Probe, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as a row of JSONL, without what it does not have; `record_from_dict` reads it back."""
        row: dict[str, Any] = {
            **self.request.to_dict(),
            "target_true": self.target_true,
            **{name: list(getattr(self, name)) for name in PROMPT_LISTS},
            "relation": self.relation,
            "case": self.case,
            "probes": [probe.to_dict() for probe in self.probes],
        }
        required = ("prompt", "subject", "target")
        return {name: value for name, value in row.items() if value or name in required}


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


def _probe_problems(kind: object, prompt: object, answers: object, group: object) -> list[str]:
    """Every reason why these four fields do not make a probe."""
    found: list[str] = []
    if not isinstance(kind, str) or kind not in PROBE_KINDS:
        found.append(f"kind must be one of {', '.join(PROBE_KINDS)}, found {_shown(kind)}")
    if not _is_visible(prompt):
        found.append(f"prompt must be a non-empty string, found {_shown(prompt)}")
    if not isinstance(answers, tuple) or not answers or not all(map(_is_visible, answers)):
        found.append(f"answers must be one or more non-empty strings, found {_shown(answers)}")
    if not isinstance(group, str) or not _is_text(group):
        found.append(f"group must be a string, found {_shown(group)}")
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
        groups.setdefault(same_text(request.text), []).append((position, request))
    problems = []
    for same in groups.values():
        if len(same) == 1:
            continue
        where = ", ".join(f"#{position} → {request.target!r}" for position, request in same)
        kind = "repeated" if len({same_text(request.target) for _, request in same}) == 1 else "contradicting"
        problems.append(f"{kind}: {same[0][1].text!r} is asked by {where}")
    if problems:
        raise ConflictError(
            f"{len(problems)} fact(s) are requested more than once; keep one request for each:",
            problems,
        )


def same_text(text: str) -> str:
    """The form by which two texts are the same: spacing and the composition of accents do not tell them apart."""
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
    problems += [_unknown_field(name, FIELDS) for name in row if name not in FIELDS]
    for name in ("target_true", "relation"):
        if row.get(name) is not None and not _is_visible(row[name]):
            problems.append(f"{name} must be a non-empty string, found {_shown(row[name])}")
    for name in PROMPT_LISTS:
        prompts = row.get(name, [])
        if not isinstance(prompts, list) or not all(map(_is_visible, prompts)):
            problems.append(f"{name} must be a list of non-empty strings, found {_shown(prompts)}")
    case = row.get("case", "")
    if not isinstance(case, str) or not _is_text(case):
        problems.append(f"case must be a string, found {_shown(case)}")
    probes, bad_probes = _read_probes(row.get("probes", []))
    if problems or bad_probes:
        raise RequestError("this row is not an edit record:", problems + bad_probes)
    return EditRecord(
        request=EditRequest(row["prompt"], row["subject"], row["target"], row.get("id", "")),
        target_true=row.get("target_true"),
        **{name: tuple(row.get(name, ())) for name in PROMPT_LISTS},
        relation=row.get("relation"),
        case=case,
        probes=probes,
    )


def _read_probes(rows: object) -> tuple[tuple[Probe, ...], list[str]]:
    """The probes of a row, and what is wrong with those that are none."""
    if not isinstance(rows, list):
        return (), [f"probes must be a list of objects, found {_shown(rows)}"]
    probes: list[Probe] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            problems.append(f"probe {number} must be an object, found {_shown(row)}")
            continue
        found = [f"{name} is missing" for name in ("kind", "prompt", "answers") if name not in row]
        found += [_unknown_field(name, _PROBE_FIELDS) for name in row if name not in _PROBE_FIELDS]
        if not found:
            answers = row["answers"]
            try:
                answers = tuple(answers) if isinstance(answers, list) else answers
                probes.append(Probe(row["kind"], row["prompt"], answers, row.get("group", "")))
            except RequestError as error:
                found = list(error.problems)
        problems += [f"probe {number}: {problem}" for problem in found]
    return tuple(probes), problems


def _is_visible(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_text(value)


def _unknown_field(name: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
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
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise RequestError(
            f"cannot read requests from {str(path)!r}: {error}; "
            "expected a UTF-8 file with one JSON object a line (--requests FILE)"
        ) from error
    return parse_records(text, str(path))
