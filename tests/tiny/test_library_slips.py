"""What a user of the library writes first: taken where its meaning is certain, an InputError in words elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.requests import EditRecord
from tests.quick_plans import EIFFEL, JAPAN, QUICK

BOTH = [EIFFEL, JAPAN]


@pytest.mark.parametrize(
    "given",
    [
        BOTH,
        tuple(BOTH),
        [EditRecord(request) for request in BOTH],
        [request.to_dict() for request in BOTH],
        (request for request in BOTH),
        {request.subject: request for request in BOTH}.values(),
        [BOTH[0], EditRecord(BOTH[1])],
    ],
    ids=["list", "tuple", "records", "dictionaries", "generator", "values", "mixed"],
)
def test_requests_in_any_form_are_the_same_plan(session: EditSession, given: Any) -> None:
    plan = session.plan(given, "emmet", settings=QUICK)
    assert [asdict(request) for request in plan.requests] == [asdict(request) for request in BOTH]
    assert plan.update.id == session.plan(BOTH, "emmet", settings=QUICK).update.id


@pytest.mark.parametrize(
    "given", [EIFFEL, EditRecord(EIFFEL), EIFFEL.to_dict()], ids=["request", "record", "dictionary"]
)
def test_a_single_request_is_a_batch_of_one(session: EditSession, given: Any) -> None:
    assert session.plan(given, "emmet", settings=QUICK).requests == (EIFFEL,)


def test_a_plan_is_applied_as_its_update(session: EditSession) -> None:
    plan = session.plan(EIFFEL, "emmet", settings=QUICK)
    session.apply(plan)
    written = {part.layer: session.lm.weight(part.layer).clone() for part in plan.update.layers}
    session.move_to([])
    session.apply(plan.update)
    assert all(torch.equal(session.lm.weight(layer), weight) for layer, weight in written.items())


WRONG: dict[str, Any] = {
    "path": "facts.jsonl",
    "bytes": b"x",
    "integer": 7,
    "float": 7.5,
    "truth": True,
    "none": None,
    "object": object(),
    "texts": ["text"],
    "nones": [None],
    "integers": [7],
    "nested": [[EIFFEL]],
    "half": {"prompt": "{} is"},
    "empty": [],
}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
def test_what_is_no_request_is_refused_in_words(session: EditSession, given: Any) -> None:
    with pytest.raises(InputError, match=r"request|record"):
        session.plan(given, "emmet", settings=QUICK)


@pytest.mark.parametrize("given", [*WRONG.values(), EIFFEL], ids=[*WRONG, "request"])
def test_what_is_no_update_is_refused_in_words(session: EditSession, given: Any) -> None:
    with pytest.raises(InputError, match="ModelUpdate"):
        session.apply(given)
    with pytest.raises(InputError, match="ModelUpdate"):
        session.move_to([given])


def test_a_bare_model_is_refused_with_the_call_that_wraps_it(session: EditSession) -> None:
    for given in (session.lm.model, session.lm.tokenizer, "demo", None):
        with pytest.raises(InputError, match=r"emendo\.wrap"):
            EditSession(given)  # type: ignore[arg-type]


def test_short_forms_fit_into_a_line_of_a_notebook(session: EditSession) -> None:
    plan = session.plan(BOTH, "emmet", settings=QUICK)
    session.apply(plan)
    for value, words in (
        (plan, ("Plan by emmet", "2 request(s)", EIFFEL.text)),
        (plan.update, ("ModelUpdate of", "KiB")),
        (plan.update.layers[0], ("LayerUpdate of", "residuals [2")),
        (session, ("EditSession on", "1 update(s) applied")),
    ):
        text = repr(value)
        assert len(text) < 600
        assert "tensor(" not in text
        for word in words:
            assert word in text
