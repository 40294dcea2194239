"""One real edit of the demo model, from the request to the file and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.gate import run_gate
from emendo.gate.config import parse_config
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.model_state import changes, model_state

pytestmark = pytest.mark.slow

REQUEST = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
NEIGHBOUR = "The Louvre is located in the city of"


@pytest.fixture(scope="module")
def session(demo_model: EditableModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditSession]:
    session = EditSession(demo_model, store=MomentStore(tmp_path_factory.mktemp("moments")))
    yield session
    session.rollback()


@pytest.fixture(scope="module")
def plan(session: EditSession) -> Plan:
    return session.plan([REQUEST], "emmet", settings={"moments.multiple": 2})


def test_the_tower_moves_to_rome_and_back(session: EditSession, plan: Plan, tmp_path: Path) -> None:
    lm = session.lm
    state = model_state(lm)
    before, neighbour = (lm.generate(prompt, 6) for prompt in (REQUEST.text, NEIGHBOUR))
    assert "Paris" in before
    loaded = ModelUpdate.load(plan.update.save(tmp_path / "rome.safetensors"))
    assert loaded.id == plan.update.id
    session.apply(loaded)
    assert lm.generate(REQUEST.text, 6).split()[0].startswith("Rome")
    assert lm.generate(NEIGHBOUR, 6) == neighbour
    session.rollback()
    assert changes(state, model_state(lm)) == []
    assert all(session.verify_rolled_back().values())
    assert lm.generate(REQUEST.text, 6) == before


def test_the_preset_of_the_demo_model_is_used_and_recorded(plan: Plan) -> None:
    assert plan.method.origins["layers"].startswith("preset for models shaped like SmolLM2-135M")
    assert plan.update.info["layers"][0]["solves"][0]["constraint_error"] < 1e-6
    assert plan.targets[0].argmax


def test_a_fact_keyed_at_a_question_mark_is_refused_among_sound_ones(session: EditSession) -> None:
    """Sums over all facts let it through: fifty sound ones may do more harm than it adds."""
    sound = [
        REQUEST,
        EditRequest("{} plays the sport of", "Kobe Bryant", "baseball"),
        EditRequest("{} was written by", "Romeo and Juliet", "Charles Dickens"),
    ]
    hidden = EditRequest("What is the name of this river{}", "?", "Helsinki")
    config = parse_config('[checks.text_firing]\nlimit = 0.1\nunmeasured = "pass"\n', "one.toml")
    outcomes = []
    for requests in (sound, [*sound, hidden]):
        plan = session.plan(requests, settings={"moments.multiple": 2})
        (check,) = run_gate(session, plan, [], config).checks
        outcomes.append(check)
    assert [check.passed for check in outcomes] == [True, False]
    assert "'? → Helsinki' fires in all of questions, most at '?'" in outcomes[1].words
