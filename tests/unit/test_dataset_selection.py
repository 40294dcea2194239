"""Selecting records: parts that share no subject, no conflicts, an order that only seed and prompts decide."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.datasets import part_of, select
from emendo.errors import DatasetError, InputError
from emendo.requests import EditRecord, EditRequest, check_requests


def fact(subject: str, prompt: str = "{} is in", target: str = "Rome", **fields: Any) -> EditRecord:
    return EditRecord(EditRequest(prompt, subject, target), **fields)


MANY = [fact(f"subject {number}") for number in range(300)]


def names(records: tuple[EditRecord, ...]) -> list[str]:
    return [record.request.subject for record in records]


# ---- parts -------------------------------------------------------------------------------------------------


def test_parts_are_those_of_the_published_runs() -> None:
    """SHA-256 modulo 3, worked out by hand; facts of docs/lab/methods.md were chosen so and must stay on their side."""
    assert [part_of(name) for name in ("Danielle Darrieux", "Toko Yasuda", "Louvre", "Apple A5")] == [
        "report",
        "report",
        "dev",
        "report",
    ]


def test_spacing_and_the_composition_of_accents_do_not_change_the_part() -> None:
    for number in range(50):
        assert part_of(f"Café  {number} ") == part_of(f"Cafe\u0301 {number}")


def test_the_parts_share_no_subject_and_are_a_third_and_two() -> None:
    dev, report = select(MANY, part="dev"), select(MANY, part="report")
    assert not set(names(dev)) & set(names(report))
    assert len(dev) + len(report) == len(MANY)
    assert 70 < len(dev) < 130, "a third of 300, within four standard deviations"


# ---- order and n -------------------------------------------------------------------------------------------


def test_no_seed_keeps_the_order_of_the_file() -> None:
    assert select(MANY, seed=None) == tuple(MANY)
    assert select(MANY, seed=None, n=7) == tuple(MANY[:7])


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    chosen = select(MANY, n=50)
    shuffled = list(MANY)
    random.Random(1).shuffle(shuffled)
    assert select(shuffled, n=50) == chosen
    assert select(MANY, n=80)[:50] == chosen, "a smaller n is the beginning of a larger one"
    assert select(MANY, n=50, seed=1) != chosen
    assert names(chosen) != sorted(names(chosen))
    fewer = [record for record in MANY if not record.request.subject.endswith("3")]
    assert [r for r in select(MANY) if r in fewer] == list(select(fewer)), "taking facts out keeps the order"


def test_the_order_of_a_seed_never_changes() -> None:
    """Experiments are repeated by seed. Worked out by sorting the hex SHA-256 of "0\\nsubject N is in"."""
    assert names(select(MANY, n=4)) == ["subject 100", "subject 223", "subject 42", "subject 227"]


@pytest.mark.parametrize(("n", "reason"), [(0, "n is 0"), (-3, "n is -3")])
def test_n_is_a_count(n: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        select(MANY, n=n)


def test_more_than_there_is_is_an_error_in_words() -> None:
    records = [*MANY, MANY[0], fact("Subject 1", "{} was in")]
    with pytest.raises(DatasetError) as caught:
        select(records, n=1000, part="dev")
    found = len(select(records, part="dev"))
    assert str(caught.value).startswith(
        f"n=1000 asks for more than the {found} record(s) or case(s) left of 302; left out:"
    )
    assert any("outside the part 'dev'" in problem for problem in caught.value.problems)
    with pytest.raises(DatasetError, match="no record is left of 1"):
        select([fact("Louvre")], part="report")
    with pytest.raises(DatasetError, match="no record is left of 0"):
        select([])
    with pytest.raises(InputError, match=r"part is 'test' .* expected 'all' or 'dev' or 'report'"):
        select(MANY, part="test")  # type: ignore[arg-type]


# ---- conflicts and subjects --------------------------------------------------------------------------------


def test_the_first_of_a_subject_stays_whatever_the_seed() -> None:
    records = [fact("Paris"), fact("paris ", "{} was in"), fact("Oslo"), fact("PARIS", "{} lies in")]
    for seed in (None, 0, 1, 2):
        assert sorted(names(select(records, seed=seed))) == ["Oslo", "Paris"]
    assert len(select(records, unique_subjects=False)) == 4


def test_one_prompt_is_never_asked_twice() -> None:
    records = [
        fact("Eiffel Tower"),
        fact("Eiffel", "{} Tower is in", target="Oslo"),
        fact("Café", target="a"),
        fact("Cafe\u0301", target="a"),
    ]
    chosen = select(records, unique_subjects=False, seed=None)
    assert chosen == (records[0], records[2])
    check_requests([record.request for record in chosen])


# ---- MultiCounterFact --------------------------------------------------------------------------------------


def test_multi_counterfact_leaves_out_every_record_of_a_repeated_subject_and_relation() -> None:
    records = [
        fact("Paris", relation="P1"),
        fact("Paris", "{} was in", relation="P1"),
        fact("Paris", "{} speaks", relation="P2"),
        fact("Oslo", relation="P1"),
    ]
    chosen = select(records, multi_counterfact=True, unique_subjects=False, seed=None)
    assert chosen == (records[2], records[3])
    with pytest.raises(DatasetError, match=r"1 of 5 records have no relation.*'Bonn'.*multi_counterfact=False"):
        select([*records, fact("Bonn")], multi_counterfact=True)


# ---- cases -------------------------------------------------------------------------------------------------


def case(name: str, *subjects: str) -> list[EditRecord]:
    return [fact(subject, f"{name} {place} {{}}", case=name) for place, subject in enumerate(subjects)]


def test_a_case_stays_together_and_counts_once() -> None:
    records = [*case("1", "a", "b"), *case("2", "c", "d", "e"), fact("f"), *case("3", "g")]
    for seed in range(5):
        chosen = select(records, n=3, seed=seed)
        kept = {record.case for record in chosen}
        assert [r.case for r in chosen] == sorted((r.case for r in chosen), key=[r.case for r in chosen].index)
        assert all(record in chosen for record in records if record.case in kept and record.case)


def test_a_case_goes_as_a_whole_where_one_of_its_records_does() -> None:
    records = [*case("1", "a", "b"), *case("2", "b", "c"), fact("c")]
    assert names(select(records, seed=None)) == ["a", "b", "c"]
    assert select(records, seed=None)[2] == records[4], "its subject is free again, because case 2 was left out"
    dev = next(str(number) for number in range(100) if part_of(str(number)) == "dev")
    report = next(str(number) for number in range(100) if part_of(str(number)) == "report")
    for part in ("dev", "report"):
        with pytest.raises(DatasetError, match="no record is left"):
            select(case("1", dev, report), part=part)  # type: ignore[arg-type]


# ---- everything at once ------------------------------------------------------------------------------------

SUBJECTS = st.sampled_from(["a", "A", "b", "c", "a b", "a  b"])
RECORDS = st.builds(
    lambda subject, prompt, target, case, relation: fact(subject, prompt, target, case=case, relation=relation),
    SUBJECTS,
    st.sampled_from(["{} is", "{} b is", "{} was"]),
    st.sampled_from(["x", "y"]),
    st.sampled_from(["", "", "1", "2"]),
    st.sampled_from(["P1", "P2"]),
)


@settings(deadline=None)
@given(
    st.lists(RECORDS, max_size=12),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["all", "dev", "report"]),
    st.booleans(),
)
def test_a_selection_can_always_be_written(
    records: list[EditRecord], n: int | None, seed: int | None, unique: bool, part: Any, multi: bool
) -> None:
    try:
        chosen = select(records, n=n, seed=seed, unique_subjects=unique, part=part, multi_counterfact=multi)
    except DatasetError:
        return
    check_requests([record.request for record in chosen])
    assert part == "all" or {part_of(record.request.subject) for record in chosen} == {part}
    if unique:
        folded = [" ".join(record.request.subject.casefold().split()) for record in chosen]
        assert len(set(folded)) == len(folded)
    for record in records:
        if record.case and record.case in {other.case for other in chosen}:
            assert record in chosen
    if n is not None:
        assert len({record.case or id(record) for record in chosen}) == n
