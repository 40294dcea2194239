"""A world: subjects, what is true of them, and which phrasing of each fact is kept from training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random

from emendo.worlds import names
from emendo.worlds.relations import CITY, COMPANY, PERSON, RELATIONS, TWO_HOPS, WORK, Relation, TwoHop

NAME = "world"
"""What the world's facts are called where a data set is asked for."""

PREFIX = f"{NAME}:"
"""What a model of it is called by, before the family."""

AUTHORS = 25
"""So many of the people write books, so that works have neighbors with the same author."""

HELD_OUT = 2
"""Phrasings of each fact that training never sees; they are seen of other subjects."""

SIZES: Mapping[str, int] = {PERSON: 100, CITY: 36, WORK: 48, COMPANY: 16}
"""How many subjects of each kind a world has."""


@dataclass(frozen=True)
class Fact:
    """One fact, and how it is said.

    Attributes:
        relation: Which.
        subject: Of whom or what.
        object: What is true of it.
        trained: Phrasings that a model is trained on, with ``{}`` for the subject.
        held_out: Phrasings of this fact that it never sees.
    """

    relation: Relation
    subject: str
    object: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """What follows from two facts.

    Attributes:
        rule: Which facts.
        first: The fact about the subject.
        second: The fact about the object of the first.
    """

    rule: TwoHop
    first: Fact
    second: Fact


@dataclass(frozen=True)
class World:
    """Everything that is true.

    Attributes:
        seed: What it was made with.
        pools: Names by kind: of subjects, and of what is only ever an object.
        facts: One for each relation and subject of its kind.
    """

    seed: int
    pools: Mapping[str, tuple[str, ...]]
    facts: tuple[Fact, ...]

    @cached_property
    def by_subject(self) -> Mapping[tuple[str, str], Fact]:
        """Facts by name of the relation and subject."""
        return {(fact.relation.name, fact.subject): fact for fact in self.facts}

    def objects(self, relation: Relation) -> tuple[str, ...]:
        """What a subject of the relation can have.

        Args:
            relation: One of `RELATIONS`.
        """
        return _objects(relation, self.pools)

    @cached_property
    def chains(self) -> tuple[Chain, ...]:
        """All that follows from two facts."""
        return tuple(
            Chain(rule, first, self.by_subject[rule.second, first.object])
            for rule in TWO_HOPS
            for first in self.facts
            if first.relation.name == rule.first
        )


def make_world(seed: int = 0, sizes: Mapping[str, int] = SIZES) -> World:
    """The world of a seed: the same on every machine.

    Args:
        seed: Of names and facts.
        sizes: How many subjects of each kind there are.
    """
    random = Random(f"world {seed}")
    taken: set[str] = set()
    pools = {
        PERSON: names.people(random, sizes[PERSON], taken),
        CITY: names.invented(random, sizes[CITY], 2, "ora", taken),
        WORK: names.titles(random, sizes[WORK]),
        COMPANY: names.companies(random, sizes[COMPANY], taken),
        "country": names.invented(random, 12, 1, "land", taken),
        "river": names.invented(random, 16, 2, "", taken),
        "profession": names.PROFESSIONS,
        "instrument": names.INSTRUMENTS,
        "topic": names.TOPICS,
    }
    facts = [_fact(random, relation, subject, pools) for relation in RELATIONS for subject in pools[relation.subject]]
    return World(seed, pools, tuple(facts))


def _fact(random: Random, relation: Relation, subject: str, pools: Mapping[str, tuple[str, ...]]) -> Fact:
    phrasings = random.sample(relation.phrasings, len(relation.phrasings))
    chosen = random.choice(_objects(relation, pools))
    return Fact(relation, subject, chosen, tuple(phrasings[HELD_OUT:]), tuple(phrasings[:HELD_OUT]))


def _objects(relation: Relation, pools: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    pool = pools[relation.object]
    return pool[:AUTHORS] if relation.object == PERSON else pool
