"""A request: what it may be made of, and which requests do not go together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emendo.errors import ConflictError, InputError, RequestError
from emendo.requests import (
    EditRequest,
    check_requests,
)

# ---- a request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((1, "s", "t"), ["prompt must be a string, found int: 1"]),
        ((None, b"s", ["t"]), ["prompt must be a string", "subject must be a string", "target must be a string"]),
        (("", "s", "t"), ["prompt is empty"]),
        ((" \n\u3000", "\t", " "), ["prompt is empty", "subject is empty", "target is empty"]),
        (("no slot", "s", "t"), ["exactly one {} for the subject, found 0: 'no slot'"]),
        (("{} and {}", "s", "t"), ["exactly one {} for the subject, found 2"]),
        (("{0} is", "s", "t"), ["found 0"]),
        (("{ } is", "s", "t"), ["found 0"]),
        (("{} is", "a {} b", "t"), ["subject must not hold {}"]),
        (("{} \ud800", "s\udfff", "\udc80"), ["prompt holds half", "subject holds half", "target holds half"]),
        (("{} is", "s", "t", None), ["id must be a string, found NoneType"]),
        (("{} is", "s", "t", 7), ["id must be a string, found int: 7"]),
        (("{} is", "s", "t", "\ud800"), ["id holds half"]),
        (("x", "{}", 3, 4), ["target must", "id must", "found 0", "subject must not"]),
    ],
)
def test_every_problem_of_a_request_is_named(fields: tuple[Any, ...], expected: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        EditRequest(*fields)
    assert len(caught.value.problems) == len(expected)
    for problem, part in zip(caught.value.problems, expected, strict=True):
        assert part in problem
    assert isinstance(caught.value, (InputError, ValueError))
    assert str(caught.value).encode("utf-8")


def test_messages_stay_short_and_shallow() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RequestError) as caught:
        EditRequest("x" * 10**6, deep, {"a": "y" * 10**6})  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3
    assert len(str(caught.value)) < 2000


def test_a_request_fills_its_slot_and_only_that() -> None:
    assert EditRequest("{{}} and }{", "Paris", "x").text == "{Paris} and }{"
    assert EditRequest("Paris, {}", "Paris", "x").text == "Paris, Paris"
    assert EditRequest("{} of", "}{", "x").text == "}{ of"
    assert EditRequest("{} of", "Paris", "x").label == "Paris"
    assert EditRequest("{} of", "Paris", "x", "7").label == "7"


@given(st.text(), st.text(), st.text(), st.text())
def test_any_text_makes_a_request_or_a_request_error(prompt: str, subject: str, target: str, id: str) -> None:
    try:
        request = EditRequest(prompt, subject, target, id)
    except RequestError:
        return
    assert request.text.count(subject) >= 1
    assert EditRequest(**request.to_dict()) == request


# ---- batches -----------------------------------------------------------------------------------------------


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(RequestError, match="nothing to edit"):
        check_requests([])


def test_every_repeated_and_contradicting_group_is_named() -> None:
    batch = [
        EditRequest("{} is in", "Paris", "Rome"),
        EditRequest("{} is in", "Oslo", "Rome"),
        EditRequest("{}  is in ", " Paris", " Rome"),
        EditRequest("{} is in", "Oslo", "Berlin"),
        EditRequest("{} is on", "Oslo", "Berlin"),
    ]
    with pytest.raises(ConflictError) as caught:
        check_requests(batch)
    assert caught.value.problems == (
        "repeated: 'Paris is in' is asked by #1 → 'Rome', #3 → ' Rome'",
        "contradicting: 'Oslo is in' is asked by #2 → 'Rome', #4 → 'Berlin'",
    )
    check_requests([batch[0], batch[1], batch[4]])


def test_one_text_with_its_subject_cut_differently_is_one_fact() -> None:
    with pytest.raises(ConflictError, match="contradicting"):
        check_requests(
            [EditRequest("{} Tower is in", "Eiffel", "Rome"), EditRequest("{} is in", "Eiffel Tower", "Oslo")]
        )


def test_accents_composed_or_not_are_one_fact() -> None:
    with pytest.raises(ConflictError, match="repeated"):
        check_requests([EditRequest("{} is", "Caf\u00e9", "x"), EditRequest("{} is", "Cafe\u0301", "x")])
