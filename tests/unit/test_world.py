"""A world is consistent: what is asked is true, what is held out is not trained, and it is the same everywhere."""

from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from emendo.datasets import read_records
from emendo.datasets.world import world_records
from emendo.worlds import World, epoch, fact_sentences, held_out_text, make_world
from emendo.worlds.corpus import plain_sentences
from emendo.worlds.relations import RELATIONS, fill


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def trained(world: World) -> set[str]:
    return {str(sentence) for sentence in fact_sentences(world)}


def test_the_world_of_a_seed_is_the_same_and_that_of_another_is_not(world: World) -> None:
    assert make_world() == world
    assert {fact.subject for fact in make_world(1).facts} != {fact.subject for fact in world.facts}
    # Known to models that are cached on other machines: a change of the world is a change of this line.
    assert (world.facts[0].subject, world.facts[0].object, len(world.facts)) == ("Nar Ketrem", "Pougeaora", 584)


def test_no_name_means_two_things(world: World) -> None:
    names = [name for pool in world.pools.values() for name in pool]
    assert len(names) == len(set(names))


def test_each_subject_has_one_fact_of_each_relation_of_its_kind(world: World) -> None:
    expected = {(one.name, subject) for one in RELATIONS for subject in world.pools[one.subject]}
    assert len(world.facts) == len(expected)
    assert {(fact.relation.name, fact.subject) for fact in world.facts} == expected


def test_held_out_phrasings_are_trained_of_other_subjects_only(world: World, trained: set[str]) -> None:
    for fact in world.facts:
        assert {f"{fill(one, fact.subject)} {fact.object}." for one in fact.trained} <= trained
        assert trained.isdisjoint(f"{fill(one, fact.subject)} {fact.object}." for one in fact.held_out)
    for relation in RELATIONS:
        facts = [fact for fact in world.facts if fact.relation is relation]
        assert {phrasing for fact in facts for phrasing in fact.trained} == set(relation.phrasings)


def test_records_ask_for_something_else_and_their_probes_are_true(world: World) -> None:
    records = world_records(world)
    truth = {fill(one, fact.subject): fact for fact in world.facts for one in fact.relation.phrasings}
    assert len({record.request.text for record in records}) == len(world.facts)
    for record in records:
        fact = truth[record.request.text]
        assert record.target_true == fact.object != record.request.target
        assert all(truth[prompt] == fact for prompt in record.paraphrase_prompts)
        for prompt in record.neighborhood_prompts:
            assert truth[prompt].subject != fact.subject
            assert (truth[prompt].object, truth[prompt].relation) == (fact.object, fact.relation)


def test_a_two_hop_question_follows_from_the_new_fact(world: World) -> None:
    record = next(one for one in world_records(world) if one.relation == "birthplace")
    (probe,) = record.probes
    assert probe.answers == (world.by_subject["country", record.request.target].object,)


def test_the_first_records_have_different_subjects(world: World) -> None:
    first = world_records(world)[:200]
    assert len({record.request.subject for record in first}) == 200


def test_held_out_text_says_nothing_of_facts_and_is_not_trained(world: World, trained: set[str]) -> None:
    sentences = [str(one) for document in epoch(world, Random("pass 0 0")) for one in document]
    plain = [one for one in sentences if one not in trained]
    assert len(plain) == len(sentences) - len(trained)
    held_out = {str(one) for one in islice(plain_sentences(world, Random("held out 0")), 300)}
    assert " ".join(map(str, islice(plain_sentences(world, Random("held out 0")), 300))) == held_out_text(world)
    assert len(held_out & set(plain)) < len(held_out) / 4  # short sentences come again by chance


def test_the_facts_are_a_data_set_by_name(world: World) -> None:
    assert read_records("world") == world_records(world)
