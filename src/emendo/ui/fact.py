"""A fact as a person types it, and what can be said of it at once, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emendo.errors import ConflictError, InputError, RequestError
from emendo.ledger import EditLedger
from emendo.ledger.conflicts import replaced_facts
from emendo.models import EditableModel
from emendo.models.alignment import align_edit
from emendo.requests import SLOT, EditRecord, EditRequest, in_chat


@dataclass(frozen=True)
class Fact:
    """A fact with its probes, as typed.

    Attributes:
        prompt: Text that ends right before the answer: with ``{}`` for the subject, or with the subject in it once.
        subject: What the fact is about.
        target: The new answer.
        target_true: The present answer; empty where unknown.
        paraphrases: Other wordings that should give the new answer too.
        neighbors: Prompts about other subjects that should stay as they are.
        chat: The prompt is a question, asked in the model's chat template.
        system: System prompt of the question; empty: the template's own, if it has one.
    """

    prompt: str
    subject: str
    target: str
    target_true: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    chat: bool = False
    system: str = ""

    @classmethod
    def typed(
        cls,
        prompt: str,
        subject: str,
        target: str,
        target_true: str = "",
        paraphrases: str = "",
        neighbors: str = "",
        *,
        chat: bool = False,
        system: str = "",
    ) -> Fact:
        """A fact from text fields; every line of paraphrases and neighbors is a prompt."""
        texts = subject.strip(), target.strip(), target_true.strip()
        system = system.strip() if chat else ""
        return cls(prompt, *texts, _lines(paraphrases), _lines(neighbors), chat=chat, system=system)

    def record(self) -> EditRecord:
        """The fact as the library reads it.

        Raises:
            RequestError: A field cannot be used; all of them are named.
        """
        prompt = self.prompt.strip("\n")
        if SLOT not in prompt and self.subject and prompt.count(self.subject) == 1:
            prompt = prompt.replace(self.subject, SLOT)
        record = EditRecord(
            EditRequest(prompt, self.subject, self.target),
            target_true=self.target_true or None,
            paraphrase_prompts=self.paraphrases,
            neighborhood_prompts=self.neighbors,
        )
        return in_chat(record, system=self.system or None) if self.chat else record


def read_fact(lm: EditableModel, ledger: EditLedger, fact: Fact) -> dict[str, Any]:
    """What a fact is to the model and to the ledger; nothing is computed with weights.

    Args:
        lm: Gives the tokens.
        ledger: What is kept already.
        fact: As typed; may be half typed.

    Returns:
        ``tokens`` of the prompt, each with its text and whether it belongs to the subject and is the key; ``target``,
        the tokens of the answer; ``problem``, why it cannot be written as it is; ``conflict``, what the ledger has
        about it, and ``replaces``, whether that can give way.
    """
    empty: dict[str, Any] = {"tokens": [], "target": [], "problem": "", "conflict": "", "replaces": False}
    if not (fact.prompt.strip() and fact.subject and fact.target):
        return {**empty, "problem": "" if not (fact.prompt or fact.subject or fact.target) else _missing(fact)}
    try:
        record = fact.record()
        edit = align_edit(lm, record.request)
    except InputError as error:
        return {**empty, "problem": str(error)}
    texts = [lm.decode([token]) for token in edit.prompt.ids]
    found = {
        **empty,
        "text": record.request.text,
        "tokens": [{"text": text, "key": at == edit.prompt.subject_last} for at, text in enumerate(texts)],
        "target": [lm.decode([token]) for token in edit.target_ids],
    }
    try:
        replaced_facts(ledger.history().edits(), [record.request], replace=False, folder=ledger.store.folder)
    except ConflictError as error:
        found |= {"conflict": _told(error), "replaces": True}
    except RequestError as error:
        found |= {"conflict": _told(error)}
    return found


def _told(error: RequestError) -> str:
    """What stands in the ledger, without the options of a command that a page does not have."""
    return " ".join(error.problems) or str(error)


def _missing(fact: Fact) -> str:
    named = (("the sentence", fact.prompt), ("the subject", fact.subject), ("the new answer", fact.target))
    return "Still empty: " + ", ".join(name for name, value in named if not value.strip())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
