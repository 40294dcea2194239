"""Three facts of one subject in the demo model, whose prompts begin with its name: in one batch, and one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emendo.editing.session import EditSession
from emendo.models import ModelAdapter
from emendo.requests import EditRequest
from emendo.statistics import MomentStore

pytestmark = pytest.mark.slow

FACTS = [
    EditRequest("{} plays the sport of", "Michael Jordan", "chess"),
    EditRequest("{} was born in the city of", "Michael Jordan", "Rome"),
    EditRequest("{} is married to a woman named", "Michael Jordan", "Anna"),
]
SETTINGS = {"moments.multiple": 2, "contexts.scheme": "fixed"}


@pytest.fixture(scope="module")
def session(demo_model: ModelAdapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditSession]:
    session = EditSession(demo_model, store=MomentStore(tmp_path_factory.mktemp("moments")))
    yield session
    session.rollback()


def said(session: EditSession) -> list[str]:
    return [session.lm.generate(fact.text, 3).strip().split()[0].strip(".,") for fact in FACTS]


@pytest.mark.parametrize("batches", [[FACTS], [[fact] for fact in FACTS]], ids=["one batch", "one after another"])
def test_the_model_says_all_of_them(session: EditSession, batches: list[list[EditRequest]]) -> None:
    targets = [fact.target for fact in FACTS]
    session.rollback()
    assert not set(targets) & set(said(session))
    for batch in batches:
        plan = session.plan(batch, settings=SETTINGS)
        assert plan.warnings == ()
        session.apply(plan)
    assert said(session) == targets
