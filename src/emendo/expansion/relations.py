"""Common relations with their wordings and some facts, and which of them a request is about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from emendo.arguments import checked
from emendo.expansion.wording import bare_name
from emendo.io import strict_yaml
from emendo.requests import SLOT, EditRecord, same_text


@dataclass(frozen=True)
class Relation:
    """What is said of many subjects in the same words.

    Attributes:
        name: In files and messages.
        texts: Prompts with a ``{}``, which an answer continues; the plainest first.
        questions: Questions with a ``{}``.
        words: A prompt with all words of one of these may be about it.
        facts: Subjects and their answers, several spellings each.
        wikidata: Its property there; empty where unknown.
    """

    name: str
    texts: tuple[str, ...]
    questions: tuple[str, ...]
    words: tuple[frozenset[str], ...]
    facts: Mapping[str, tuple[str, ...]]
    wikidata: str = ""

    def knows(self, record: EditRecord) -> int:
        """How many of a request's subject, target and true target are among the facts."""
        answers = {answer.casefold() for spellings in self.facts.values() for answer in spellings}
        subjects = {bare_name(name) for name in self.facts}
        given = (record.request.target, record.target_true or "")
        return (bare_name(record.request.subject) in subjects) + sum(
            text.strip().casefold() in answers for text in given
        )


@dataclass(frozen=True)
class Recognition:
    """What a request is about.

    Attributes:
        relation: The relation; None where none was recognised, or several.
        why: By what it was recognised, or why it was not.
    """

    relation: Relation | None
    why: str


@cache
def packaged_relations() -> tuple[Relation, ...]:
    """The relations that come with Emendo."""
    text = (resources.files("emendo") / "data" / "relations.yaml").read_text(encoding="utf-8")
    return tuple(_relation(row) for row in strict_yaml.loads(text, as_text=True))


def _relation(row: Mapping[str, Any]) -> Relation:
    facts = {name: (given,) if isinstance(given, str) else tuple(given) for name, given in row["facts"].items()}
    return Relation(
        row["name"],
        tuple(row["texts"]),
        tuple(row["questions"]),
        tuple(frozenset(line.split()) for line in row["words"]),
        facts,
        row.get("wikidata", ""),
    )


@checked
def recognise_relation(record: EditRecord, relations: Sequence[Relation] | None = None) -> Recognition:
    """The relation that a request is about: as its `relation` names it, or else by the words of its prompt.

    A prompt that is a wording of one relation is of that one. Otherwise relations are tried whose words the prompt
    has and which know its subject or one of its answers. Where they are several, it is the one that knows most of
    them; several that cannot be told apart are none.

    Args:
        record: The request.
        relations: Among these; None: the packaged ones.
    """
    known = packaged_relations() if relations is None else relations
    prompt = _plain(record.request.prompt)
    wordings = [one for one in known if prompt in {_plain(text) for text in (*one.texts, *one.questions)}]
    words = set(prompt.split())
    for found, why in (
        ([one for one in known if record.relation == one.name], "its relation says so"),
        (wordings, "its prompt is a wording of it"),
        (
            [one for one in known if one.wikidata and record.relation == one.wikidata],
            f"its relation is {record.relation}",
        ),
        ([one for one in known if any(line <= words for line in one.words) and one.knows(record)], "by its words"),
    ):
        best = _best(found, record)
        if len(best) == 1:
            return Recognition(best[0], why)
        if best:
            return Recognition(None, f"it may be {' or '.join(one.name for one in best)}")
    return Recognition(None, "its prompt is like none that is known")


def _best(found: Iterable[Relation], record: EditRecord) -> list[Relation]:
    scored = [(one.knows(record), one) for one in found]
    most = max((score for score, _ in scored), default=0)
    return [one for score, one in scored if score == most]


def _plain(prompt: str) -> str:
    """A prompt in small letters without article before its slot and without punctuation; the slot is a word."""
    text = same_text(prompt).casefold().replace(SLOT, " slot ")
    return " ".join(re.sub(r"\bthe slot\b", "slot", " ".join(re.findall(r"\w+", text))).split())
