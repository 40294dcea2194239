"""A fact to be traced, as tokens: where its subject stands, and which token is the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from emendo.arguments import check_fields, checked
from emendo.errors import RequestError
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.requests import SLOT, EditRecord, EditRequest

CLASSES = ("before", "first subject", "middle subject", "last subject", "first after", "further", "last")
"""Classes of positions over which facts are averaged, in the order of a text."""


@dataclass(frozen=True)
class TraceFact:
    """A prompt about a subject, and what should follow it.

    Args:
        prompt: Text with one ``{}`` for the subject.
        subject: Fills the slot.
        answer: What should follow; None for whatever the model says.

    Raises:
        RequestError: The prompt has no slot or several, or a text is empty.
    """

    prompt: str
    subject: str
    answer: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prompt.count(SLOT) != 1:
            raise RequestError(
                f"the prompt {self.prompt!r} has {self.prompt.count(SLOT)} slots; expected one {SLOT} where the "
                "subject goes (--prompt)"
            )
        if not self.subject.strip():
            raise RequestError("the subject is empty; expected the text that fills the slot (--subject)")
        if self.answer is not None and not self.answer.strip():
            raise RequestError("the answer is empty; expected text, or leave it out for what the model says (--answer)")

    @classmethod
    @checked
    def of(cls, record: EditRecord) -> TraceFact:
        """The fact that a record changes: its prompt with the true answer, or without one where it has none.

        Raises:
            RequestError: The record is asked in chat.
        """
        return cls(raw_prompt(record.request), record.request.subject, record.target_true)

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(SLOT, self.subject)


def raw_prompt(request: EditRequest) -> str:
    """The prompt of a request that is a text; a trace follows texts alone.

    Raises:
        RequestError: It is asked in chat.
    """
    if request.chat is not None:
        raise RequestError(
            f"{request.text!r} is asked in chat, and causal tracing follows raw prompts; expected a prompt in place of "
            "the question, such as 'The {} is in'"
        )
    return request.prompt


@dataclass(frozen=True)
class AlignedFact:
    """A fact as the model reads it.

    Attributes:
        fact: The fact.
        ids: Tokens of the prompt, with the model's BOS if it has one.
        begin: First token of the subject.
        end: One past its last token.
        answer: Token of the answer that is scored: its first one. None until the model has said it.
    """

    fact: TraceFact
    ids: tuple[int, ...]
    begin: int
    end: int
    answer: int | None

    @property
    def ends(self) -> tuple[int, ...]:
        """The subject's last token and the text's last."""
        return tuple(sorted({self.end - 1, len(self.ids) - 1}))


def align_fact(lm: EditableModel, fact: TraceFact, lead: str = "") -> AlignedFact:
    """Tokens of a fact.

    Args:
        lm: The model.
        fact: The fact.
        lead: Text in front of its prompt.

    Raises:
        RequestError: No token belongs to the subject, or the tokenizer cannot write the answer.
    """
    before = lead + fact.prompt.partition(SLOT)[0]
    text = (lead + fact.text).rstrip(" ")
    ids, offsets = lm.encode_with_offsets(text)
    subject = fact.subject.strip()
    first = len(before) + fact.subject.index(subject)
    inside = [i for i, (a, b) in enumerate(offsets) if b > first and a < first + len(subject) and b > a]
    if not inside:
        raise RequestError(
            f"no token of {text!r} belongs to the subject {subject!r}; expected visible text (--subject)"
        )
    answer = None if fact.answer is None else encode_target(lm, text, fact.answer)[1][0]
    return AlignedFact(fact, tuple(ids), inside[0], inside[-1] + 1, answer)


@checked
def position_classes(length: int, begin: int, end: int) -> tuple[str, ...]:
    """The class of every position of a text.

    A subject of one token has only a last one. Where the subject ends the text, its last token counts as the
    subject's; where one token follows it, that is the last token.

    Args:
        length: Tokens of the text.
        begin: First token of the subject.
        end: One past its last token.

    Source: the position classes of ROME (arXiv 2202.05262), figure 2.
    """

    def name(t: int) -> str:
        if t < begin:
            return "before"
        if t < end:
            return "last subject" if t == end - 1 else "first subject" if t == begin else "middle subject"
        if t == length - 1:
            return "last"
        return "first after" if t == end else "further"

    return tuple(name(t) for t in range(length))


def packaged_subjects() -> tuple[str, ...]:
    """Subjects of the packaged demo facts: a scale for the noise where a single fact is traced."""
    text = (resources.files("emendo") / "data" / "demo_facts.jsonl").read_text(encoding="utf-8")
    return tuple(dict.fromkeys(json.loads(line)["subject"] for line in text.splitlines() if line.strip()))


def check_facts(facts: Sequence[TraceFact]) -> None:
    """Refuse an empty list, and a fact that is there twice."""
    if not facts:
        raise RequestError("no facts to trace; expected at least one (--prompt and --subject, or --facts)")
    seen: set[tuple[str, str | None]] = set()
    for fact in facts:
        if (key := (fact.text, fact.answer)) in seen:
            raise RequestError(f"the fact {fact.text!r} is there twice; expected each once (--facts)")
        seen.add(key)
