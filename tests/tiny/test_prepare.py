"""A prepared method gives what plans without it give, and does nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from emendo.editing.session import EditSession
from emendo.errors import InputError, WeightsChangedError
from emendo.models.checksums import row_sums
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK
from tests.tiny.test_changed_weights import CHANGES

FACTS = [EIFFEL, DARRIEUX, JAPAN]
HISTORY: dict[str, Any] = {**QUICK, "history.weight": 1.0}


@pytest.mark.parametrize("method", ["emmet", "memit", "emendo", "rome"])
def test_one_after_another_gives_the_same_updates(method: str, store: MomentStore) -> None:
    layers = [1] if method in ("rome", "emmet") else [0, 2]
    session, other = (EditSession(build_tiny("llama"), store=store) for _ in range(2))
    ready = other.prepare(method, layers=layers, settings=QUICK)
    before = model_state(other.lm)
    for fact in FACTS:
        plan = session.plan([fact], method, layers=layers, settings=QUICK)
        session.apply(plan)
        assert ready.plan([fact]).update.id == plan.update.id
        assert ready.edit(fact).update.id == plan.update.id
    assert [update.id for update in other.applied_updates] == [update.id for update in session.applied_updates]
    other.rollback()
    assert changes(before, model_state(other.lm)) == []
    assert all(other.verify_rolled_back().values())
    assert ready.plan([EIFFEL]).update.id == session_free(method, layers, store)


def session_free(method: str, layers: list[int], store: MomentStore) -> str:
    return EditSession(build_tiny("llama"), store=store).plan([EIFFEL], method, layers=layers, settings=QUICK).update.id


def test_a_history_grows_by_what_is_new(store: MomentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the updates are those of sessions that start from its edits at once."""
    from emendo.solve import PreparedLayer

    rows: list[int] = []
    original = PreparedLayer.remembering

    def counted(metric: PreparedLayer, keys: Any, *, weight: float) -> PreparedLayer:
        rows.append(len(keys))
        return original(metric, keys, weight=weight)

    session = EditSession(build_tiny("llama"), store=store)
    ready = session.prepare("emmet", layers=[1], settings=HISTORY)
    monkeypatch.setattr(PreparedLayer, "remembering", counted)
    plans = [ready.edit(fact) for fact in FACTS]
    assert rows == [1, 1]
    again = EditSession(build_tiny("llama"), store=store)
    again.move_to(plans[:2])
    assert again.plan([FACTS[2]], "emmet", layers=[1], settings=HISTORY).update.id == plans[2].update.id
    assert rows == [1, 1, 2]
    session.rollback()
    rows.clear()
    ready.edit(JAPAN)
    ready.plan([EIFFEL])
    assert rows == [1]


def test_what_a_plan_without_it_does_is_not_done(session: EditSession, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = session.prepare("emendo", layers=[0, 2], settings=QUICK)

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made again")

    for name in (
        "models.checksums.weights_sha256",
        "editing.metric_cache.obtain_for_method",
        "editing.metric_cache.prepare",
        "editing.metric_cache.output_power",
        "editing.session.prefix_contexts",
        "solve.metric._factorised",
        "statistics.obtain.obtain_moments",
    ):
        monkeypatch.setattr(f"emendo.{name}", refused)
    ready.edit(EIFFEL)
    ready.edit(JAPAN)


def test_other_weights_are_not_read(session: EditSession, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, lm, read = session.prepare("emendo", layers=[0, 2], settings=QUICK), session.lm, set()

    def noted(model: Any, **which: Any) -> dict[str, str]:
        read.update(sums := row_sums(model, **which))
        return sums

    monkeypatch.setattr("emendo.models.contents.row_sums", noted)
    ready.edit(EIFFEL)
    assert read <= {lm.parameter_name(0), lm.parameter_name(2)}
    session.apply(session.plan(JAPAN, "emmet", layers=[1], settings=QUICK))
    assert lm.parameter_name(1) in read
    assert len(read) > 3


def test_contexts_are_sampled_once(store: MomentStore) -> None:
    session = EditSession(build_tiny("gpt2"), store=store)
    ready = session.prepare("emmet", layers=[1], settings={**QUICK, "contexts.scheme": "rome"})
    found = [ready.edit(fact).contexts for fact in FACTS]
    assert found == [ready.contexts] * 3
    assert len(ready.contexts) > 1


@pytest.mark.parametrize("change", sorted(set(CHANGES) - {"written through .data"}))
def test_weights_that_somebody_changed_are_refused(change: str, session: EditSession) -> None:
    ready = session.prepare("emmet", layers=[1], settings=QUICK)
    plan = ready.plan([EIFFEL])
    CHANGES[change](session.lm)
    before = model_state(session.lm)
    for step in (lambda: ready.apply(plan), lambda: ready.plan([EIFFEL])):
        with pytest.raises(WeightsChangedError, match="accept_weights"):
            step()
    assert changes(before, model_state(session.lm)) == []


def test_a_written_matrix_that_changed_through_data_is_refused(session: EditSession) -> None:
    ready = session.prepare("emmet", layers=[1], settings=QUICK)
    session.lm.weight(1).data[0, 0] += 1
    with pytest.raises(WeightsChangedError):
        ready.plan([EIFFEL])


def test_a_parameter_that_changed_through_data_is_seen_by_the_session(session: EditSession) -> None:
    """As PreparedMethod says."""
    ready = session.prepare("emmet", layers=[1], settings=QUICK)
    plan = ready.edit(EIFFEL)
    CHANGES["written through .data"](session.lm)
    with pytest.raises(WeightsChangedError):
        session.rollback()
    assert session.applied_updates == (plan.update,)


def test_a_baseline_has_nothing_to_make_ready(session: EditSession) -> None:
    with pytest.raises(InputError, match="baseline"):
        session.prepare("ft-l")
