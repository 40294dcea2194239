"""`emendo.edit`: one line from facts to an edited model, and the way back; requests as other tools write them."""

from __future__ import annotations

import pytest

import emendo
from emendo.errors import MethodError, RequestError
from emendo.models import EditableModel
from tests.every import every
from tests.model_state import changes, model_state
from tests.quick_plans import EIFFEL, JAPAN, QUICK

FACT = {"prompt": EIFFEL.prompt, "subject": EIFFEL.subject, "target_new": "Rome"}


def test_one_line_edits_and_the_session_takes_it_back(tiny_llama: EditableModel) -> None:
    before = model_state(tiny_llama)
    session = emendo.edit(tiny_llama, FACT, "emmet", layers=[1], settings=QUICK)
    assert session.lm is tiny_llama
    (update,) = session.applied_updates
    assert update.info["requests"][0]["target"] == "Rome"
    assert changes(before, model_state(tiny_llama))
    assert emendo.edit(session, JAPAN, "emmet", layers=[1], settings=QUICK) is session
    assert len(session.applied_updates) == 2
    session.rollback()
    assert changes(before, model_state(tiny_llama)) == []


def test_a_folder_is_loaded_and_a_plan_is_the_same(model: str) -> None:
    session = emendo.edit(model, [FACT], "MEMIT", layers=[1, 2], settings=QUICK, dtype="float32")
    other = emendo.EditSession(emendo.load(model, dtype="float32"))
    plan = other.plan(EIFFEL, "memit", layers=[1, 2], settings=QUICK)
    assert session.applied_updates[0].layers[0].residuals.equal(plan.update.layers[0].residuals)
    other.apply(plan)
    assert session.lm.weight(1).equal(other.lm.weight(1))


def test_what_cannot_be_used_leaves_the_model(tiny_llama: EditableModel) -> None:
    before = model_state(tiny_llama)
    with pytest.raises(MethodError, match="did you mean 'emmet'"):
        emendo.edit(tiny_llama, FACT, "emet")
    with pytest.raises(RequestError, match="target and target_new are both given, as 'Oslo' and 'Rome'"):
        emendo.edit(tiny_llama, {**FACT, "target": "Oslo"})
    with pytest.raises(RequestError, match=r"target must be a string, found int: 7"):
        emendo.edit(tiny_llama, {**FACT, "target_new": 7})
    assert changes(before, model_state(tiny_llama)) == []


def test_requests_of_rome_and_memit_are_taken_as_they_are(tiny_llama: EditableModel) -> None:
    plan = emendo.EditSession(tiny_llama).plan({**FACT, "target_new": {"str": "Rome"}}, "in-context")
    assert plan.requests[0] == EIFFEL
    with_id = {**FACT, "target_new": {"str": "Rome", "id": "Q220"}}
    assert emendo.EditSession(tiny_llama).plan([with_id], "in-context").requests[0] == EIFFEL


@every("name", emendo.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(emendo, name) is not None
    assert name in dir(emendo)


def test_what_a_script_needs_is_at_the_top() -> None:
    wanted = {
        "edit",
        "EditLedger",
        "load_records",
        "run_gate",
        "METHODS",
        "BASELINES",
        "MethodConfig",
        "BaselineConfig",
    }
    registers = {"method", "distribution", "data_format", "model_family", "measure", "gate_check"}
    assert wanted | {f"register_{kind}" for kind in registers} <= set(emendo.__all__)
