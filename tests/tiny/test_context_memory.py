"""Sampled contexts are sampled once for a model, a scheme and a seed, and are the same afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

import emendo.editing.session as session_module
from emendo.editing.context_memory import read_contexts
from emendo.editing.contexts import prefix_contexts
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.value_cache import remembered_targets
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from tests.quick_plans import EIFFEL, QUICK


@pytest.fixture(autouse=True)
def _fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))


def begun(lm: EditableModel, store: MomentStore, seed: int = 0) -> EditSession:
    return EditSession(lm, seed=seed, store=store, targets=remembered_targets([EIFFEL]))


def planned(session: EditSession) -> Plan:
    return session.plan([EIFFEL], "emmet", settings={**QUICK, "contexts.scheme": "memit"})


def test_a_second_session_samples_nothing_and_plans_the_same(
    tiny_llama: EditableModel, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(begun(tiny_llama, store))
    assert read_contexts(tiny_llama, "memit", 0) == prefix_contexts(tiny_llama, "memit", 0)
    monkeypatch.setattr(session_module, "prefix_contexts", lambda *_: pytest.fail("sampled again"))
    assert planned(begun(tiny_llama, store)).update.id == first.update.id
    with pytest.raises(pytest.fail.Exception):
        planned(begun(tiny_llama, store, seed=1))


def test_a_damaged_file_is_sampled_again(tiny_llama: EditableModel, store: MomentStore, tmp_path: Path) -> None:
    first = planned(begun(tiny_llama, store))
    (path,) = (tmp_path / "home" / "contexts").iterdir()
    path.write_text('["{} {}"]')
    assert planned(begun(tiny_llama, store)).update.id == first.update.id
    assert read_contexts(tiny_llama, "memit", 0) == first.contexts


def test_a_session_without_a_memory_writes_nothing(
    tiny_llama: EditableModel, store: MomentStore, tmp_path: Path
) -> None:
    planned(EditSession(tiny_llama, store=store))
    assert not (tmp_path / "home" / "contexts").exists()
