"""What to edit: requests, records (a request with probes), and what makes one valid."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from emendo.arguments import check_fields, checked
from emendo.errors import ConflictError, RequestError
from emendo.io.printable import shown
from emendo.requests.hints import SLOT, with_slot
from emendo.requests.joining import JOINS, Join, Pair, stored_join

PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
"""The fields of a record that are lists of prompts."""

FIELDS = ("id", "prompt", "subject", "target", "join", "target_true", *PROMPT_LISTS, "relation", "case", "probes")
"""The fields of a record in its own JSONL form."""

PROBE_KINDS = {
    "portability": "what follows from the new fact, asked in one step: aliases, inverse and derived relations",
    "multi_hop": "a question whose answer needs several facts, the new ones among them",
    "single_hop": "one step of such a question, as it is after the edit",
    "locality": "what the edit must not touch",
}
"""What a probe may ask, and what each kind means."""


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: `prompt` with its one slot filled by `subject` is to continue with `target`.

    Args:
        prompt: Text with exactly one ``{}`` where the subject goes, ending right before the target.
        subject: Fills the slot. The edit is keyed on its last token.
        target: The new continuation.
        id: Label in reports and errors; the subject where empty.
        join: What is put between prompt and target where neither brings whitespace: ``"auto"``, a space unless the
            text around the border has none (after a currency sign, inside a number, before a comma, in Chinese ...);
            ``"space"``; or ``"none"``. It holds for the other prompts of a record too.

    Raises:
        RequestError: A field is not a string, is empty or not valid Unicode, the prompt has no slot or several, or
            `join` is unknown.
    """

    OBTAINED_BY: ClassVar[str] = "EditRequest(prompt, subject, target)"

    prompt: str
    subject: str
    target: str
    id: str = ""
    join: Join = "auto"

    def __post_init__(self) -> None:
        problems = request_problems(self.prompt, self.subject, self.target, self.id, self.join)
        if problems:
            raise RequestError("this edit request cannot be used:", problems)

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def fact(self) -> str:
        """What is asked, as requests are compared: spacing and the composition of accents do not tell them apart."""
        return same_text(self.text)

    @property
    def answer(self) -> str:
        """The target, as requests are compared."""
        return same_text(self.target)

    @property
    def label(self) -> str:
        """How messages and reports name this request."""
        return self.id or self.subject

    @checked
    def pair(self, prompt: str, target: str) -> Pair:
        """A prompt and a target joined as this request says, for the functions that score pairs."""
        return prompt, target, self.join

    def to_dict(self) -> dict[str, str]:
        """The request as it is stored in update files and reports; `from_dict` reads it back."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "subject": self.subject,
            "target": self.target,
            "join": self.join,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> EditRequest:
        """A stored request. One that was stored before `join` existed gets the one that it meant.

        Raises:
            RequestError: A field is not what it has to be.
            TypeError: A field is missing or unknown.
        """
        request = cls(**row)
        return request if "join" in row else replace(request, join=stored_join(request.text, request.target))


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

    OBTAINED_BY: ClassVar[str] = "EditRecord(request) or emendo.read_records(PATH)"

    request: EditRequest
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation: str | None = None
    case: str = ""
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (*PROMPT_LISTS, "probes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, say

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
        if row["join"] == "auto":
            del row["join"]
        return {name: value for name, value in row.items() if value or name in required}


def request_problems(
    prompt: object, subject: object, target: object, id: object = "", join: object = "auto"
) -> list[str]:
    """Every reason why these fields do not make a request."""
    found: list[str] = []
    for name, value in (("prompt", prompt), ("subject", subject), ("target", target)):
        if not isinstance(value, str):
            found.append(f"{name} must be a string, found {type(value).__name__}: {shown(value)}")
        elif not value.strip():
            found.append(f"{name} is empty")
        elif not is_text(value):
            found.append(f"{name} holds half of a surrogate pair, which no tokenizer can read: {shown(value)}")
    if not isinstance(id, str):
        found.append(f"id must be a string, found {type(id).__name__}: {shown(id)}")
    elif not is_text(id):
        found.append(f"id holds half of a surrogate pair: {shown(id)}")
    if not isinstance(join, str) or join not in JOINS:
        found.append(f"join must be one of {', '.join(JOINS)}, found {shown(join)}")
    if isinstance(prompt, str) and prompt.strip() and prompt.count(SLOT) != 1:
        slots = prompt.count(SLOT)
        better = with_slot(prompt, subject) if slots == 0 else ""
        found.append(f"prompt must hold exactly one {{}} for the subject, found {slots}: {shown(prompt)}{better}")
    if isinstance(subject, str) and SLOT in subject:
        found.append(f"subject must not hold {{}}: {shown(subject)}")
    return found


def _probe_problems(kind: object, prompt: object, answers: object, group: object) -> list[str]:
    """Every reason why these four fields do not make a probe."""
    found: list[str] = []
    if not isinstance(kind, str) or kind not in PROBE_KINDS:
        found.append(f"kind must be one of {', '.join(PROBE_KINDS)}, found {shown(kind)}")
    if not is_visible(prompt):
        found.append(f"prompt must be a non-empty string, found {shown(prompt)}")
    if not isinstance(answers, tuple) or not answers or not all(map(is_visible, answers)):
        found.append(f"answers must be one or more non-empty strings, found {shown(answers)}")
    if not isinstance(group, str) or not is_text(group):
        found.append(f"group must be a string, found {shown(group)}")
    return found


def is_text(value: str) -> bool:
    """Whether a string can be encoded: JSON escapes can leave half of a surrogate pair in it."""
    if value.isascii():  # known to the string without looking through it; most are
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_visible(value: object) -> bool:
    """Whether a value is a string that shows something and can be encoded."""
    return isinstance(value, str) and value != "" and not value.isspace() and is_text(value)


@checked
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
        groups.setdefault(request.fact, []).append((position, request))
    problems = []
    for same in groups.values():
        if len(same) == 1:
            continue
        where = ", ".join(f"#{position} → {request.target!r}" for position, request in same)
        kind = "repeated" if len({request.answer for _, request in same}) == 1 else "contradicting"
        problems.append(f"{kind}: {same[0][1].text!r} is asked by {where}")
    if problems:
        raise ConflictError(
            f"{len(problems)} fact(s) are requested more than once; keep one request for each:",
            problems,
        )


@checked
def same_text(text: str) -> str:
    """The form by which two texts are the same: spacing and the composition of accents do not tell them apart."""
    return unicodedata.normalize("NFC", " ".join(text.split()))
