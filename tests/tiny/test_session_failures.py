"""Whatever fails while planning, applying or rolling back, the model and the session stay as they were."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.pairs import covering
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK, quick_plan

# ---- planning -----------------------------------------------------------------------------------------------


class BrokenError(Exception):
    """What the tests inject; nothing in Emendo catches it."""


def failing(original: Callable[..., Any], at: int, error: type[BaseException]) -> Callable[..., Any]:
    """`original`, but its call number `at` (from 1) raises."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return original(*args, **kwargs)

    return wrapped


STAGES = {
    "contexts": ("emendo.editing.session.prefix_contexts", 1),
    "moments": ("emendo.editing.metric_cache.obtain_for_method", 1),
    "factorisation of the second layer": ("emendo.editing.metric_cache.prepare", 2),
    "target problem": ("emendo.editing.value_search.value_problem", 1),
    "target search, first step": ("emendo.editing.value_search._Search._update", 1),
    "target search, second step": ("emendo.editing.value_search._Search._update", 2),
    "keys of the first layer": ("emendo.editing.keys.EditActivations.keys", 1),
    "keys of the second layer": ("emendo.editing.keys.EditActivations.keys", 2),
    "residual of the second layer": ("emendo.editing.keys.EditActivations.values", 2),
    "solve of the first layer": ("emendo.editing.edit_run.solve", 1),
    "solve of the last layer": ("emendo.editing.edit_run.solve", 3),
    "measures": ("emendo.editing.edit_run.layer_report", 2),
    "the update": ("emendo.editing.pipeline.ModelUpdate", 1),
}


def three_layers(session: EditSession) -> Plan:
    """A plan whose searches make two updates."""
    settings = {**QUICK, "target.steps": 3}
    return session.plan([EIFFEL, DARRIEUX], "memit", layers=[0, 1, 2], settings=settings)


@pytest.fixture(scope="module")
def untroubled(store: MomentStore) -> tuple[ModelUpdate, dict[bool, str]]:
    """An earlier edit, and the edit that comes of a plan that nothing disturbs, without the earlier one and with it."""
    session = EditSession(build_tiny("gpt2"), store=store)
    found = {False: three_layers(session).update.id}
    earlier = quick_plan(session, [JAPAN]).update
    session = EditSession(build_tiny("gpt2"), store=store)
    session.apply(earlier)
    found[True] = three_layers(session).update.id
    return earlier, found


@pytest.mark.parametrize(
    ("stage", "on_top", "error"), covering(list(STAGES), [False, True], [BrokenError, KeyboardInterrupt])
)
def test_a_failure_at_any_stage_leaves_the_model_and_the_session_sound(
    stage: str,
    on_top: bool,
    error: type[BaseException],
    tiny_gpt2: EditableModel,
    store: MomentStore,
    untroubled: tuple[ModelUpdate, dict[bool, str]],
) -> None:
    session = EditSession(tiny_gpt2, store=store)
    earlier, expected = untroubled
    if on_top:
        session.apply(earlier)
    before, applied = model_state(tiny_gpt2), session.applied_updates
    where, at = STAGES[stage]
    with pytest.MonkeyPatch.context() as patch:
        module, _, name = where.rpartition(".")
        holder = _resolved(module)
        patch.setattr(holder, name, failing(getattr(holder, name), at, error))
        with pytest.raises(error):
            three_layers(session)
    assert changes(before, model_state(tiny_gpt2)) == []
    assert session.applied_updates == applied
    assert three_layers(session).update.id == expected[on_top]


def _resolved(path: str) -> Any:
    """The module or class of a dotted path."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_write_that_fails_half_way_through_a_matrix_during_planning(
    at: int, session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_state(session.lm)
    torn_write(monkeypatch, at)
    with pytest.raises(BrokenError):
        three_layers(session)
    assert changes(before, model_state(session.lm)) == []
    quick_plan(session, [EIFFEL])


def torn_write(monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException] = BrokenError) -> None:
    """Write number `at`, of an edit or of an original, overwrites half of its matrix and raises."""
    calls = 0

    def torn(original: Callable[..., None]) -> Callable[..., None]:
        def write(self: EditableModel, layer: int, what: object) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                own = self.weight(layer)
                own[: len(own) // 2] = 7.0
                raise error
            original(self, layer, what)

        return write

    for name in ("write", "put_back"):
        monkeypatch.setattr(EditableModel, name, torn(getattr(EditableModel, name)))


def test_moments_of_the_unedited_model_are_collected_with_the_edit_in(
    tiny_llama: EditableModel, tmp_path: Path
) -> None:
    """Collection reads the unedited weights in an isolated model, so others go on seeing the edit."""

    class Fuse:
        def start(self, stage: str, total: int | None = None) -> None:
            if blown and stage == "second moments":
                assert changes(before, model_state(tiny_llama)) == []
                assert tiny_llama.holds_edits
                raise BrokenError

        def advance(self, n: int = 1) -> None: ...

        def finish(self) -> None: ...

    blown = False
    session = EditSession(tiny_llama, store=MomentStore(tmp_path), progress=Fuse())
    session.apply(quick_plan(session, [JAPAN], layers=[1]).update)
    before, blown = model_state(tiny_llama), True
    with pytest.raises(BrokenError):
        quick_plan(session, [EIFFEL], layers=[2])
    assert changes(before, model_state(tiny_llama)) == []
    blown = False
    found = quick_plan(session, [EIFFEL], layers=[2]).update
    untroubled = EditSession(build_tiny("llama"), store=MomentStore(tmp_path / "another"))
    untroubled.apply(session.applied_updates[0])
    assert quick_plan(untroubled, [EIFFEL], layers=[2]).update.id == found.id


# ---- applying and rolling back --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "on top of an edit"])
def test_applying_fails_in_the_middle_of_a_matrix(
    earlier: bool, at: int, error: type[BaseException], session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    if earlier:
        session.apply(quick_plan(session, [JAPAN], layers=[1]).update)
    update = quick_plan(session, [EIFFEL], "memit", layers=[0, 1, 2]).update
    state, applied, holds = model_state(session.lm), session.applied_updates, session.lm.holds_edits
    with monkeypatch.context() as patch:
        torn_write(patch, at, error)
        with pytest.raises(error):
            session.apply(update)
    assert changes(state, model_state(session.lm)) == []
    assert session.applied_updates == applied
    assert session.lm.holds_edits == holds
    session.apply(update)
    session.rollback()
    assert all(session.verify_rolled_back().values())


def test_a_rollback_that_fails_can_be_repeated(session: EditSession, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = model_state(session.lm)
    session.apply(quick_plan(session, [EIFFEL], "memit", layers=[0, 1, 2]).update)
    edited = model_state(session.lm)
    with monkeypatch.context() as patch:
        torn_write(patch, 2)
        with pytest.raises(BrokenError):
            session.rollback()
    assert changes(edited, model_state(session.lm)) == []
    session.rollback()
    assert changes(clean, model_state(session.lm)) == []


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the real cache."""
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
