"""What a request is about, and how other subjects stand in its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emendo.datasets import read_records, write_records
from emendo.errors import OutputError
from emendo.expansion import Relation, packaged_relations, recognise_relation
from emendo.expansion.wording import filled, with_article
from emendo.requests import SLOT, EditRecord, EditRequest, Probe

PROVINCES = Relation(
    "capital of a province",
    ("The capital of {} is",),
    ("What is the capital of {}?",),
    (frozenset({"capital"}),),
    {"Elphberg": ("Zenda",)},
    "P36",
)


def record(
    prompt: str, subject: str, target: str = "x", true: str | None = None, relation: str | None = None
) -> EditRecord:
    return EditRecord(EditRequest(prompt, subject, target), target_true=true, relation=relation)


def test_packaged_relations_are_whole() -> None:
    relations = packaged_relations()
    assert len({one.name for one in relations}) == len(relations) > 25
    for one in relations:
        assert all(text.count(SLOT) == 1 for text in (*one.texts, *one.questions)), one.name
        assert len(one.texts) >= 2
        assert len(one.questions) >= 2
        assert all(text.endswith("?") for text in one.questions)
        assert len(one.facts) >= 10, one.name
        assert all(answers and all(answer.strip() for answer in answers) for answers in one.facts.values())
        # The plainest wordings are recognised, and as nothing else.
        assert all(recognise_relation(record(text, "Ruritania")).relation is one for text in one.texts[:2]), one.name


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (record("The capital of {} is", "Ruritania"), "capital of a country"),
        (record("the  Capital of {} is", "Ruritania"), "capital of a country"),
        (record("The {} is located in the city of", "Zenda Castle"), "city of a sight"),
        (record("What is the capital of {}?", "Ruritania"), "capital of a country"),
        # By its words, where one of subject and answers is known.
        (record("As of today {} has the capital city", "Kenya"), "capital of a country"),
        (record("As of today {} has the capital city", "Ruritania", true="Vienna"), "capital of a country"),
        (record("As of today {} has the capital city", "Ohio"), "capital of a U.S. state"),
        (record("As of today {} has the capital city", "Ruritania"), None),
        # The other way round is another relation.
        (record("{} is the founder of", "Bill Gates", "Apple", "Microsoft"), None),
        (record("The largest city of {} is", "Ruritania", "Strelsau"), None),
        (record("{} likes", "Ann"), None),
        # What a data set says.
        (record("{} lies in", "Mumbai", relation="P30"), "continent of a country"),
        (record("{} likes", "Ann", relation="sport of a team"), "sport of a team"),
    ],
)
def test_a_request_is_recognised_by_its_prompt(asked: EditRecord, expected: str | None) -> None:
    found = recognise_relation(asked)
    assert (found.relation.name if found.relation else None) == expected, found.why


def test_what_may_be_two_relations_is_none() -> None:
    both = [*packaged_relations(), PROVINCES]
    found = recognise_relation(record("The capital of {} is", "Ruritania"), both)
    assert found.relation is None
    assert found.why == "it may be capital of a country or capital of a province"
    # A subject that one of them knows decides.
    assert recognise_relation(record("The capital of {} is", "Elphberg"), both).relation is PROVINCES


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("{} is in", "the Louvre", "The Louvre is in"),
        ("The {} is in", "the Louvre", "The Louvre is in"),
        ("The {} is in", "Big Ben", "Big Ben is in"),
        ("{} is in", "Big Ben", "Big Ben is in"),
        ("Where is {}?", "the Louvre", "Where is the Louvre?"),
        ("Where is the {}?", "Big Ben", "Where is Big Ben?"),
        ("{} is in", "The Hague", "The Hague is in"),
        ("{} was written by", "iOS", "iOS was written by"),
    ],
)
def test_names_take_the_article_that_they_have(template: str, name: str, expected: str) -> None:
    assert filled(template, name) == expected


def test_the_article_of_a_prompt_belongs_to_its_subject() -> None:
    assert with_article("The {} is in", "Colosseum") == "the Colosseum"
    assert with_article("{} is in", "The Eiffel Tower") == "the Eiffel Tower"
    assert with_article("{} is in", "Rome") == "Rome"


@pytest.mark.parametrize("suffix", [".yaml", ".jsonl"])
def test_written_records_are_read_as_they_were(tmp_path: Path, suffix: str) -> None:
    records = [
        EditRecord(
            EditRequest("{} lives in: the", "Ann #1 [x]", "no"),
            target_true="12",
            paraphrase_prompts=("yes", "- a: b", 'quoted "text" of Ålesund 東京'),
            probes=(Probe("question", "Where?", ("on", "1.50"), "chat", chat=True), Probe("locality", "null", ("~",))),
            relation="capital of a country",
            guessed=("paraphrase_prompts", "probes"),
        ),
        EditRecord(EditRequest.question("Who is {}?", "Bo", "true", system="Be\nbrief.")),
    ]
    path = tmp_path / f"facts{suffix}"
    write_records(path, records, head=["guessed"], notes=["the first", "the second"])
    assert read_records(path) == records
    text = path.read_text(encoding="utf-8")
    assert ("# the first\n" in text) == (suffix == ".yaml")
    assert not re.search(r"\\u", text)


def test_a_file_of_no_known_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"ends in '\.csv'; expected one of \.yaml, \.yml, \.jsonl \(--out\)"):
        write_records(tmp_path / "facts.csv", [record("{} is", "Ann")])
