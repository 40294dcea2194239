"""Remembered target searches: the same numbers whoever asks first, and only for the unedited model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import emendo.editing.value_cache as target_memory
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.value_cache import ValueCache
from emendo.editing.value_search import search_values
from emendo.errors import InputError, TargetFileError
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, REQUESTS, quick_plan

CONTEXTS = ("{}", "The weather was calm. {}")
SETTINGS = TargetSettings(steps=3, batch_size=2)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of requests of every search that is really made."""
    made: list[int] = []

    def counted(lm: Any, requests: Any, *rest: Any) -> Any:
        made.append(len(requests))
        return search_values(lm, requests, *rest)

    monkeypatch.setattr(target_memory, "search_values", counted)
    return made


def test_chunks_do_not_depend_on_who_asks_first(tiny_llama: EditableModel, searches: list[int], tmp_path: Path) -> None:
    forward, backward = ValueCache(REQUESTS), ValueCache(REQUESTS, tmp_path)
    together = forward.find(tiny_llama, REQUESTS, CONTEXTS, 2, SETTINGS)
    assert searches == [2, 1]
    for number in (2, 0, 1):
        alone = backward.find(tiny_llama, [REQUESTS[number]], CONTEXTS, 2, SETTINGS)
        assert torch.equal(alone.value[0], together.value[number])
        assert alone.traces == together.traces[number : number + 1]
    assert searches == [2, 1, 1, 2]
    fresh = search_values(tiny_llama, REQUESTS[:2], CONTEXTS, 2, SETTINGS)
    assert torch.equal(together.value[:2], fresh.value)
    assert torch.equal(together.delta[:2], fresh.delta)


def test_a_second_memory_reads_what_the_first_found(
    tiny_llama: EditableModel, searches: list[int], tmp_path: Path
) -> None:
    first, second = ValueCache(REQUESTS, tmp_path), ValueCache(REQUESTS, tmp_path)
    found = first.find(tiny_llama, REQUESTS, CONTEXTS, 2, SETTINGS)
    again = second.find(build_tiny("llama"), REQUESTS, CONTEXTS, 2, SETTINGS)
    assert searches == [2, 1]
    assert torch.equal(found.value, again.value)
    assert torch.equal(found.delta, again.delta)
    assert found.traces == again.traces
    assert (first.shared_seconds, second.search_seconds) == (0.0, 0.0)
    assert second.shared_seconds == first.search_seconds > 0


CHANGES: dict[str, dict[str, Any]] = {
    "contexts": {"contexts": CONTEXTS[:1]},
    "layer": {"layer": 1},
    "a target setting": {"settings": replace(SETTINGS, learning_rate=0.1)},
    "weights": {"adapter": "other seed"},
    "a request beside it": {"requests": [EIFFEL, JAPAN, DARRIEUX]},
}


def another_rope() -> EditableModel:
    """The same weights, and other positions made of them."""
    lm = build_tiny("llama")
    lm.model.config.rope_parameters = {"rope_type": "default", "rope_theta": 100.0}
    other = type(lm.model)(lm.model.config)
    other.load_state_dict(lm.model.state_dict())
    return EditableModel(other.eval(), lm.tokenizer)


def another_end() -> EditableModel:
    """The same tokens, of which another one ends a text."""
    lm = build_tiny("llama")
    lm.tokenizer.eos_token = "<s>"
    return lm


@pytest.mark.parametrize("change", [another_rope, another_end])
def test_models_with_the_same_weights_are_not_taken_for_each_other(
    change: Callable[[], EditableModel], tiny_llama: EditableModel, searches: list[int], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, end_of_text=True)
    ValueCache([EIFFEL], tmp_path).find(tiny_llama, [EIFFEL], CONTEXTS, 2, settings)
    other = change()
    assert other.weights_digest() == tiny_llama.weights_digest()
    found = ValueCache([EIFFEL], tmp_path).find(other, [EIFFEL], CONTEXTS, 2, settings)
    assert searches == [1, 1]
    assert torch.equal(found.value, search_values(other, [EIFFEL], CONTEXTS, 2, settings).value)


def test_what_the_tokenizer_was_last_used_for_does_not_matter(
    tiny_llama: EditableModel, searches: list[int], tmp_path: Path
) -> None:
    ValueCache([EIFFEL], tmp_path).find(tiny_llama, [EIFFEL], CONTEXTS, 2, SETTINGS)
    again = build_tiny("llama")
    again.tokenizer(["Paris", "Paris is calm"], padding=True, truncation=True, max_length=2)
    again = EditableModel(again.model, again.tokenizer)
    ValueCache([EIFFEL], tmp_path).find(again, [EIFFEL], CONTEXTS, 2, SETTINGS)
    assert searches == [1]


def test_other_weights_in_a_context_are_not_the_base(tiny_llama: EditableModel) -> None:
    memory = ValueCache([EIFFEL])
    with tiny_llama.edited({1: tiny_llama.weight(1) * 2}), pytest.raises(InputError, match="unedited model"):
        memory.find(tiny_llama, [EIFFEL], CONTEXTS, 2, SETTINGS)
    assert not tiny_llama.holds_edits


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_a_search_depends_on_makes_another_one(
    what: str, tiny_llama: EditableModel, searches: list[int], tmp_path: Path
) -> None:
    changed = dict(CHANGES[what])
    ValueCache(REQUESTS, tmp_path).find(tiny_llama, [EIFFEL], CONTEXTS, 2, SETTINGS)
    lm = build_tiny("llama", seed=1) if changed.pop("adapter", None) else tiny_llama
    memory = ValueCache(changed.pop("requests", REQUESTS), tmp_path)
    asked = {"contexts": CONTEXTS, "layer": 2, "settings": SETTINGS, **changed}
    memory.find(lm, [EIFFEL], **asked)
    assert len(searches) == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_file_that_was_altered_or_belongs_elsewhere_is_refused(tiny_llama: EditableModel, tmp_path: Path) -> None:
    ValueCache(REQUESTS, tmp_path).find(tiny_llama, REQUESTS, CONTEXTS, 2, SETTINGS)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(TargetFileError, match="another search"):
        ValueCache(REQUESTS, tmp_path).find(tiny_llama, REQUESTS, CONTEXTS, 2, SETTINGS)
    first.write_bytes(whole[:-3] + b"xyz")
    with pytest.raises(TargetFileError, match="delete it"):
        ValueCache(REQUESTS, tmp_path).find(tiny_llama, REQUESTS, CONTEXTS, 2, SETTINGS)


def test_requests_that_are_unknown_or_repeated_are_refused(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match="each once"):
        ValueCache([EIFFEL, EIFFEL])
    with pytest.raises(InputError, match="leave targets= out"):
        ValueCache([EIFFEL]).find(tiny_llama, [JAPAN], CONTEXTS, 2, SETTINGS)


# ---- in a session ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["emmet", "memit", "rome", "pmet"])
def test_a_session_with_a_memory_plans_the_same_update(
    method: str, tiny_llama: EditableModel, store: MomentStore, searches: list[int]
) -> None:
    plain = quick_plan(EditSession(tiny_llama, store=store), [EIFFEL], method)
    session = EditSession(tiny_llama, store=store, targets=ValueCache([EIFFEL]))
    assert quick_plan(session, [EIFFEL], method).update.id == plain.update.id
    assert quick_plan(session, [EIFFEL], method).update.id == plain.update.id
    assert searches == [1]


def test_what_is_searched_on_an_edited_model_is_not_remembered(
    tiny_llama: EditableModel, store: MomentStore, searches: list[int]
) -> None:
    session = EditSession(tiny_llama, store=store, targets=ValueCache(REQUESTS))
    quick_plan(session, [EIFFEL, JAPAN], "rome")  # the second is searched on the model that holds the first
    assert searches == []
    session.apply(quick_plan(session, [JAPAN]).update)
    assert len(searches) == 1
    later = quick_plan(session, [EIFFEL])
    assert len(searches) == 1
    plain = EditSession(build_tiny("llama"), store=store)
    plain.apply(session.applied_updates[0])
    assert quick_plan(plain, [EIFFEL]).update.id == later.update.id


@pytest.mark.parametrize("shared", ["key", "subject"])
def test_requests_that_share_a_target_are_a_search_of_their_own(
    shared: str, tiny_llama: EditableModel, searches: list[int], tmp_path: Path
) -> None:
    """Which requests share one is a matter of the batch; each group is found again, alone or beside others."""
    settings = replace(SETTINGS, shared=shared)
    twin = replace(EIFFEL, prompt="{} was built by")
    known = [EIFFEL, JAPAN, twin]
    memory = ValueCache(known, tmp_path)
    found = memory.find(tiny_llama, known, CONTEXTS, 2, settings)
    assert searches == [2, 2]  # the chunk that JAPAN is in, and the twins
    assert torch.equal(found.value[0], found.value[2])
    together = search_values(tiny_llama, [EIFFEL, twin], CONTEXTS, 2, settings)
    assert torch.equal(found.value[[0, 2]], together.value)
    assert (found.traces[0], found.traces[2]) == together.traces
    again = ValueCache(known, tmp_path)
    assert torch.equal(again.find(tiny_llama, [EIFFEL, twin], CONTEXTS, 2, settings).value, together.value)
    assert len(searches) == 2
    alone = memory.find(tiny_llama, [EIFFEL], CONTEXTS, 2, settings)
    assert not torch.equal(alone.value[0], found.value[0])
    assert len(searches) == 2, "of the chunk that is known"
    with pytest.raises(InputError, match="roll back"):
        memory.find(tiny_llama, [EIFFEL], CONTEXTS, 2, settings, None, [twin])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_plan_one_by_one_goes_on_where_it_was_interrupted(
    family: str, searches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search is on the model that holds the facts before it, so what they wrote is part of its name."""

    def plan(folder: Path | None, requests: list[EditRequest]) -> Plan:
        targets = ValueCache(requests, folder)
        session = EditSession(build_tiny(family), store=MomentStore(tmp_path / "moments"), targets=targets)
        return quick_plan(session, requests, "rome", layers=[1])

    whole = plan(None, REQUESTS)
    counted = target_memory.search_values

    def interrupted(*arguments: Any) -> Any:
        if sum(searches) == 5:
            raise KeyboardInterrupt
        return counted(*arguments)

    searches.clear()
    monkeypatch.setattr(target_memory, "search_values", interrupted)
    searches.extend([1, 1, 1])  # so that two more are made before the interrupt
    with pytest.raises(KeyboardInterrupt):
        plan(tmp_path / "targets", REQUESTS)
    monkeypatch.setattr(target_memory, "search_values", counted)
    searches.clear()
    resumed = plan(tmp_path / "targets", REQUESTS)
    assert searches == [1]
    assert resumed.update.id == whole.update.id
    assert resumed.targets == whole.targets
    plan(tmp_path / "targets", REQUESTS)
    assert searches == [1]
    plan(tmp_path / "targets", [REQUESTS[0], REQUESTS[2], REQUESTS[1]])  # after another fact it is another search
    assert searches == [1, 1, 1]
