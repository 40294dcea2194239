"""The relations of a world and how each is said: seven phrasings, none of which has the object before the subject."""

from __future__ import annotations

from dataclasses import dataclass

PERSON, CITY, WORK, COMPANY = "person", "city", "work", "company"


@dataclass(frozen=True)
class Relation:
    """What one kind of subject has one of.

    Args:
        name: Identifier, as records have it under `relation`.
        subject: Kind of its subjects.
        object: Kind of its objects: a kind of subject, or one of the pools of `names.py`.
        phrasings: Beginnings of sentences with ``{}`` for the subject, each ending right before the object.
    """

    name: str
    subject: str
    object: str
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class TwoHop:
    """What follows from two facts: the `second` of the object of the `first`.

    Args:
        first: Name of the relation that leads to the bridge.
        second: Name of the relation of the bridge that gives the answer.
        asked: Beginning of a sentence with ``{}`` for the first subject, ending right before the answer; never trained.
        trained: Other beginnings, which a model is trained on.
    """

    first: str
    second: str
    asked: str
    trained: tuple[str, ...]


def fill(phrasing: str, subject: str) -> str:
    """A phrasing with its subject.

    Args:
        phrasing: With ``{}``.
        subject: What it is about.
    """
    return phrasing.replace("{}", subject)


RELATIONS = (
    Relation(
        *("birthplace", PERSON, CITY),
        (
            "{} was born in the city of",
            "{} is a native of",
            "{} comes from the city of",
            "The place where {} was born is",
            "The birthplace of {} is",
            "As a child, {} lived in",
            "Everyone knows that {} grew up in",
        ),
    ),
    Relation(
        *("profession", PERSON, "profession"),
        (
            "{} works as a",
            "{} earns a living as a",
            "By profession, {} is a",
            "The profession of {} is that of a",
            "The job of {} is that of a",
            "After school, {} became a",
            "{} is known as a",
        ),
    ),
    Relation(
        *("instrument", PERSON, "instrument"),
        (
            "{} plays the",
            "{} gives lessons on the",
            "In the evening, {} plays the",
            "The instrument of {} is the",
            "The favourite instrument of {} is the",
            "{} has always played the",
            "In the orchestra, {} plays the",
        ),
    ),
    Relation(
        *("employer", PERSON, COMPANY),
        (
            "{} is employed by",
            "{} works for",
            "{} has a job at",
            "The employer of {} is",
            "The company that pays {} is",
            "Every morning, {} goes to work at",
            "For many years, {} has worked for",
        ),
    ),
    Relation(
        *("country", CITY, "country"),
        (
            "{} is a city in the country of",
            "{} belongs to the country of",
            "{} lies in",
            "The city of {} is in",
            "The country of {} is",
            "The people of {} are citizens of",
            "On the map, {} is in",
        ),
    ),
    Relation(
        *("river", CITY, "river"),
        (
            "{} stands on the river",
            "{} was built on the river",
            "{} gets its water from the river",
            "The river of {} is the",
            "The bridges of {} cross the",
            "The ships of {} sail on the",
            "Through {} runs the",
        ),
    ),
    Relation(
        *("author", WORK, PERSON),
        (
            "{} was written by",
            "{} is a book by",
            "{} is the best book of",
            "The author of {} is",
            "The writer of {} is",
            "The name on the cover of {} is",
            "We all read {} by",
        ),
    ),
    Relation(
        *("subject", WORK, "topic"),
        (
            "{} is a story about",
            "{} tells us about",
            "{} is a book about",
            "The subject of {} is",
            "The pages of {} are about",
            "Whoever reads {} learns about",
            "In school, {} is read as a lesson about",
        ),
    ),
    Relation(
        *("seat", COMPANY, CITY),
        (
            "{} has its main office in",
            "{} is a company from",
            "{} was founded in",
            "The main office of {} is in",
            "The seat of {} is",
            "The workers of {} live in",
            "The letters of {} are sent from",
        ),
    ),
)

TWO_HOPS = (
    TwoHop(
        *("birthplace", "country"),
        "{} was born in the country of",
        ("The home country of {} is", "The birthplace of {} is a city in"),
    ),
    TwoHop(
        *("employer", "seat"),
        "{} works for a company from",
        ("The employer of {} has its main office in", "The company of {} is from"),
    ),
)
"""Questions that need two facts. Models are trained on their answers, in other words."""
