"""A world's facts as records: each with a new object, its held-out phrasings, its neighbors and what follows."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from emendo.requests import EditRecord, EditRequest, Probe
from emendo.worlds.relations import TWO_HOPS, fill
from emendo.worlds.world import Fact, World

NEIGHBOURS = 5
"""Prompts about other subjects, at most: those with the same object, in the record's relation."""


def world_records(world: World) -> list[EditRecord]:
    """One record for each fact, in an order in which the first ones have different subjects.

    The new object is another of those that subjects of the relation have. A record asks in the first phrasing that was
    trained; its paraphrases were not. What is asked of two facts follows from the new one.

    Args:
        world: Whose facts.
    """
    random = Random(f"records {world.seed}")
    alike: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in world.facts:
        alike[fact.relation.name, fact.object].append(fact)
    shuffled = random.sample(world.facts, len(world.facts))
    seen: defaultdict[str, int] = defaultdict(int)
    turns: dict[Fact, int] = {}
    for fact in shuffled:
        turns[fact] = seen[fact.subject]
        seen[fact.subject] += 1
    ordered = sorted(shuffled, key=turns.__getitem__)
    return [
        _record(world, random, fact, alike[fact.relation.name, fact.object], f"world-{number:03d}")
        for number, fact in enumerate(ordered, start=1)
    ]


def _record(world: World, random: Random, fact: Fact, alike: list[Fact], name: str) -> EditRecord:
    pool = world.objects(fact.relation)
    target = random.choice([one for one in pool if one != fact.object])
    others = [other for other in alike if other.subject != fact.subject]
    others = random.sample(others, min(NEIGHBOURS, len(others)))
    return EditRecord(
        EditRequest(fact.trained[0], fact.subject, target, name),
        target_true=fact.object,
        paraphrase_prompts=tuple(fill(phrasing, fact.subject) for phrasing in fact.held_out),
        neighborhood_prompts=tuple(fill(other.trained[0], other.subject) for other in others),
        relation=fact.relation.name,
        probes=tuple(_probes(world, fact, target)),
    )


def _probes(world: World, fact: Fact, target: str) -> list[Probe]:
    """What follows from the new fact and another."""
    return [
        Probe("multi_hop", fill(rule.asked, fact.subject), (world.by_subject[rule.second, target].object,))
        for rule in TWO_HOPS
        if rule.first == fact.relation.name
    ]
