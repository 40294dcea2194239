"""Requests with neighbors that the model answers, paraphrases and questions, and an account of what was guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from emendo.arguments import Count, checked
from emendo.expansion.neighbors import Candidate, Search, as_fields, candidates, in_order, search_answered
from emendo.expansion.relations import Recognition, Relation, packaged_relations, recognise_relation
from emendo.expansion.wording import begun, filled, with_article
from emendo.models import EditableModel
from emendo.progress import Watched, chosen_progress
from emendo.requests import EditRecord, Probe

NEIGHBORS, PARAPHRASES, QUESTIONS = 5, 2, 2
"""How many are proposed for a request unless something else is asked for."""


@dataclass(frozen=True)
class Found:
    """What was proposed for one request.

    Attributes:
        recognition: What it is about, and how that was told.
        neighbors: Other subjects that were asked in its own words, and how many of them the model answered.
        neighbors_in_chat: The same of questions in chat; (0, 0) where there are none.
        kept: Fields that the request had already, and that were left alone.
    """

    recognition: Recognition
    neighbors: tuple[int, int] = (0, 0)
    neighbors_in_chat: tuple[int, int] = (0, 0)
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expansion:
    """Requests with what was proposed for them.

    Attributes:
        records: In the order of the requests.
        found: What was proposed for each.
    """

    records: tuple[EditRecord, ...]
    found: tuple[Found, ...]


@checked
def expand_records(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    neighbors: Count = NEIGHBORS,
    paraphrases: Count = PARAPHRASES,
    questions: Count = QUESTIONS,
    relations: Sequence[Relation] | None = None,
    progress: Watched = None,
) -> Expansion:
    """Propose neighbors, paraphrases and questions for requests, by what their prompts are about.

    Neighbors are facts of the same relation about other subjects. Each is asked, in the request's own words and, where
    the model has a chat template, as a question in chat; only those that the model answers are kept. Paraphrases and
    questions are wordings of the relation and are not asked. All of it is a guess from the words of the prompt; a
    record names the fields in `guessed`. Prompts that a record has already stay, and get no others of their kind.

    Args:
        lm: The unedited model.
        records: The requests.
        neighbors: Most of a request, in its own words and as many in chat.
        paraphrases: Most of a request.
        questions: Most of a request, plain and as many in chat.
        relations: What is known; None: the packaged relations.
        progress: Told about the questions.

    Raises:
        InputError: A prompt is longer than the model's positions.
    """
    known = packaged_relations() if relations is None else relations
    told = [recognise_relation(record, known) for record in records]
    searches = _searches(records, told, neighbors, in_chat=lm.has_chat_template)
    search_answered(lm, [one for pair in searches for one in pair], neighbors, chosen_progress(progress))
    expanded, found = [], []
    for record, one, (own, chat) in zip(records, told, searches, strict=True):
        kept: tuple[str, ...] = ()
        if one.relation is not None:
            record, kept = _expanded(
                record, one.relation, [*own.found, *chat.found], paraphrases, questions, in_chat=lm.has_chat_template
            )
        expanded.append(record)
        found.append(Found(one, (own.asked, len(own.found)), (chat.asked, len(chat.found)), kept))
    return Expansion(tuple(expanded), tuple(found))


def _searches(
    records: Sequence[EditRecord], told: Sequence[Recognition], most: int, *, in_chat: bool
) -> list[tuple[Search, Search]]:
    """Which neighbors every request may have: in its own words, and as questions in chat."""
    edited = {with_article(one.request.prompt, one.request.subject) for one in records}
    turn: Counter[str] = Counter()
    searches = []
    for record, one in zip(records, told, strict=True):
        pair = []
        for chat in (False, True):
            found: list[Candidate] = []
            if one.relation is not None and _wants(record, chat) and (in_chat or not chat):
                found = candidates(record, one.relation, edited, chat=chat)
                found = in_order(found, record, most * turn[one.relation.name])
            pair.append(Search(record, found, []))
        searches.append((pair[0], pair[1]))
        turn[one.relation.name if one.relation else ""] += 1
    return searches


def _wants(record: EditRecord, chat: bool) -> bool:
    """Whether a request gets neighbors in its own words, or as questions in chat; a question has one form only."""
    has = record.neighborhood_prompts or any(probe.kind == "locality" for probe in record.probes)
    return not has and (not chat or record.request.chat is None)


def _expanded(
    record: EditRecord,
    relation: Relation,
    neighbors: Sequence[Candidate],
    paraphrases: int,
    questions: int,
    *,
    in_chat: bool,
) -> tuple[EditRecord, tuple[str, ...]]:
    """The record with what it did not have, and the fields that it had."""
    kept = []
    new: dict[str, tuple[object, ...]] = {"neighborhood_prompts": (), "paraphrase_prompts": (), "probes": ()}
    if neighbors:
        new |= as_fields(record, neighbors)
    elif not _wants(record, chat=False):
        kept.append("neighbors")
    if record.paraphrase_prompts:
        kept.append("paraphrases")
    else:
        new["paraphrase_prompts"] = tuple(_paraphrases(record, relation)[:paraphrases])
    if any(probe.kind == "question" for probe in record.probes):
        kept.append("questions")
    elif record.request.chat is None:
        new["probes"] = (*_questions(record, relation, questions, in_chat=in_chat), *new["probes"])
    given: dict[str, Any] = {name: (*getattr(record, name), *more) for name, more in new.items() if more}
    guessed = tuple(dict.fromkeys((*record.guessed, *given)))
    return replace(record, **given, relation=record.relation or relation.name, guessed=guessed), tuple(kept)


def _paraphrases(record: EditRecord, relation: Relation) -> list[str]:
    """The request in the relation's other words: questions where it is a question, else texts."""
    request = record.request
    name = with_article(request.prompt, request.subject)
    wordings = relation.texts if request.chat is None else relation.questions
    texts = (filled(wording, name) for wording in wordings)
    return [text for text in texts if text.casefold() != request.text.casefold()]


def _questions(record: EditRecord, relation: Relation, most: int, *, in_chat: bool) -> list[Probe]:
    """The fact as questions, plain ("What is the capital of France? It is") and in chat."""
    request = record.request
    name = with_article(request.prompt, request.subject)
    asked = [filled(wording, name) for wording in relation.questions][:most]
    answers = (request.target.strip(),)
    plain = [Probe("question", begun(text), answers, "plain") for text in asked]
    chat = [Probe("question", text, answers, "chat", chat=True) for text in asked] if in_chat else []
    return [*plain, *chat]
