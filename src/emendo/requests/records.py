"""What to edit: requests, records (a request with probes), and what makes one valid."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from emendo.arguments import check_fields, checked
from emendo.errors import ConflictError, RequestError
from emendo.requests.chat import (
    Chat,
    Conversation,
    Prompt,
    asked_with,
    chat_problems,
    is_message,
    stored_chat,
)
from emendo.requests.hints import SLOT
from emendo.requests.joining import Join, Pair, stored_join
from emendo.requests.problems import probe_problems, request_problems

PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
"""The fields of a record that are lists of prompts."""

ASKED_FIELDS = ("question", "system", "messages")
"""The fields of a record that is asked in chat: a question with or without a system prompt, or a conversation."""

FIELDS = (
    *("id", "prompt", *ASKED_FIELDS, "subject", "target", "join", "target_true"),
    *(*PROMPT_LISTS, "relation", "case", "probes", "guessed"),
)
"""The fields of a record in its own JSONL form."""


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: `prompt` with its one slot filled by `subject` is to continue with `target`.

    A request with `chat` is a question: its prompt is a message of a conversation, which is asked in the model's own
    chat template, and its target is the answer. `question` makes one.

    Args:
        prompt: Text with exactly one ``{}`` where the subject goes, ending right before the target.
        subject: Fills the slot. The edit is keyed on its last token.
        target: The new continuation, or the new answer.
        id: Label in reports and errors; the subject where empty.
        join: What is put between prompt and target where neither brings whitespace: ``"auto"``, a space unless the
            text around the border has none (after a currency sign, inside a number, before a comma, in Chinese ...);
            ``"space"``; or ``"none"``. It holds for the other prompts of a record too. In chat the template joins.
        chat: The turns around the prompt, which then is a message; None: the prompt is a text to be continued.

    Raises:
        RequestError: A field is not a string, is empty or not valid Unicode, the prompt has no slot or several,
            `join` is unknown or given in chat, or another turn has a slot.
    """

    OBTAINED_BY: ClassVar[str] = "EditRequest(prompt, subject, target)"

    prompt: str
    subject: str
    target: str
    id: str = ""
    join: Join = "auto"
    chat: Chat | None = None

    def __post_init__(self) -> None:
        problems = request_problems(self.prompt, self.subject, self.target, self.id, self.join)
        problems += [] if self.chat is None else chat_problems(self.chat, self.join)
        if problems:
            raise RequestError("this edit request cannot be used:", problems)

    @classmethod
    @checked
    def question(cls, question: str, subject: str, answer: str, *, system: str | None = None, id: str = "") -> Self:
        """A question that is asked in chat, and its new answer.

        Args:
            question: The user's message, with one ``{}`` for the subject.
            subject: Fills the slot.
            answer: What the model is to say.
            system: The system prompt; None: the template's own, if it has one.
            id: Label in reports and errors.

        Raises:
            RequestError: As of the class.
        """
        return cls(question, subject, answer, id, chat=asked_with(system))

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot: in chat the message that holds it."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def asked(self) -> Prompt:
        """What the model is asked: the text, or the conversation that the answer follows."""
        return self.text if self.chat is None else Conversation(self.chat.around(self.text))

    @checked
    def asking(self, prompt: str, *, chat: bool = False) -> Prompt:
        """Another prompt of the same record as it is asked: in chat where this is and the prompt is a message.

        Args:
            prompt: A paraphrase, a neighbor or a probe; under the same system prompt, without other turns.
            chat: In chat whatever this request is.
        """
        if prompt == self.text and (self.chat is not None or not chat):
            return self.asked
        if not chat and (self.chat is None or not is_message(prompt)):
            return prompt
        return Conversation(asked_with(None if self.chat is None else self.chat.system).around(prompt))

    @checked
    def asking_probe(self, probe: Probe) -> Prompt:
        """A probe of the same record as it is asked."""
        return self.asking(probe.prompt, chat=probe.chat)

    @cached_property
    def fact(self) -> str:
        """What is asked, as requests are compared: spacing and the composition of accents do not tell them apart.

        A text and the same text as a question are two facts: a model can answer them differently.
        """
        if self.chat is None:
            return same_text(self.text)
        return same_text(" ".join(f"{turn.role}: {turn.content}" for turn in self.chat.around(self.text)))

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
        """A prompt and a target, asked and joined as this request is, for the functions that score pairs."""
        return self.asking(prompt), target, self.join

    def to_dict(self) -> dict[str, Any]:
        """The request as it is stored in update files and reports; `from_dict` reads it back.

        One that is asked in chat has its turns under `messages`, without the answer.
        """
        row: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "subject": self.subject,
            "target": self.target,
            "join": self.join,
        }
        if self.chat is not None:
            row["messages"] = [turn.to_dict() for turn in self.chat.around(self.prompt)]
        return row

    @classmethod
    @checked
    def from_dict(cls, row: Mapping[str, Any]) -> EditRequest:
        """A stored request. One that was stored before `join` existed gets the one that it meant.

        Raises:
            RequestError: A field is not what it has to be.
            TypeError: A field is missing or unknown.
        """
        fields = {name: value for name, value in row.items() if name != "messages"}
        if "messages" in row:
            fields["chat"] = stored_chat(row["messages"], row["prompt"])
        request = cls(**fields)
        return request if "join" in row else replace(request, join=stored_join(request.text, request.target))


@dataclass(frozen=True)
class Probe:
    """One question about the edited model that is neither a paraphrase nor a neighborhood prompt.

    Args:
        kind: One of `PROBE_KINDS`.
        prompt: Asked as it stands; the answer continues it.
        answers: Spellings of the right answer, the usual one first; any of them counts.
        group: The data set's own name for this sort of probe, such as ``"Subject_Aliasing"``.
        chat: Asked as a user's message in the model's chat template, also where the request is a text.

    Raises:
        RequestError: With every problem of the fields.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    group: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        problems = probe_problems(self.kind, self.prompt, self.answers, self.group, self.chat)
        if problems:
            raise RequestError("this probe cannot be used:", problems)

    def to_dict(self) -> dict[str, Any]:
        """The probe as a row holds it."""
        row = {"kind": self.kind, "prompt": self.prompt, "answers": list(self.answers)}
        return row | ({"group": self.group} if self.group else {}) | ({"chat": True} if self.chat else {})


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
        guessed: Fields whose prompts nobody has read yet, because Emendo proposed them (`emendo requests expand`);
            verdicts say so.
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
    guessed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (*PROMPT_LISTS, "probes", "guessed"):
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
            "guessed": list(self.guessed),
        }
        required = ("prompt", "subject", "target")
        if row["join"] == "auto":
            del row["join"]
        if (chat := self.request.chat) is not None:
            del row["prompt"]
            if chat.single:
                del row["messages"]
                asked = {"question": self.request.prompt, "system": chat.system}
                row = {"id": row.pop("id"), **asked, **row}
        return {name: value for name, value in row.items() if value or name in required}


@checked
def in_chat(record: EditRecord, *, system: str | None = None) -> EditRecord:
    """The record with its prompt as a question in chat; one that is in chat already stays.

    Args:
        record: The record; its target is then the whole answer, and its other prompts that are messages are asked too.
        system: The system prompt; None: the template's own, if it has one.

    Raises:
        RequestError: The system prompt is not text.
    """
    if record.request.chat is not None:
        return record
    return replace(record, request=replace(record.request, join="auto", chat=asked_with(system)))


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
