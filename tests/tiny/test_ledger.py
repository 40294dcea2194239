"""A ledger with real plans on tiny models: taking an edit out is, bit for bit, never having made it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.session import EditSession
from emendo.errors import BaseMismatchError, ConflictError, InputError, LedgerError, MethodError
from emendo.ledger import EditLedger, LedgerStore, StoredEdit
from emendo.ledger.replay import kept_method
from emendo.methods import BASELINES, METHODS, MethodConfig
from emendo.methods.presets import PRESETS
from emendo.models import EditableModel
from emendo.models.known import KnownModel, Preset
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.removal import without
from tests.conftest import build_tiny
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK

COUNTRIES = ("Japan", "France", "Italy", "Peru", "Chad", "Mali", "Cuba", "Iran", "Oman", "Fiji")
FACTS = [
    EditRequest("The capital of {} is", name, ("Rome", "Paris", "Tokyo")[i % 3]) for i, name in enumerate(COUNTRIES)
]
HOW: list[dict[str, Any]] = [
    {"method": "emmet"},
    {"method": "memit", "layers": [1, 2]},
    {"method": "emmet", "settings": {"history.weight": 1.0}},
    {"method": "rome"},
]
"""What the edits are made with, in turn."""


def weights_of(lm: EditableModel) -> list[Tensor]:
    return [lm.weight(layer).clone() for layer in range(lm.n_layers)]


def equal_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(
        torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


def begun(folder: Path, store: MomentStore, **model: Any) -> tuple[EditLedger, EditSession]:
    session = EditSession(build_tiny("llama", **model), store=store)
    return EditLedger.create(folder, session, who="tester"), session


def made(ledger: EditLedger, session: EditSession, numbers: list[int]) -> dict[int, str]:
    """The edits of these numbers, each with its own method and seed; gives their ids."""
    ids = {}
    for number in numbers:
        how = HOW[number % len(HOW)]
        session.seed = number % 2
        settings = {**QUICK, **how.get("settings", {})}
        ids[number] = ledger.edit(
            session, [FACTS[number]], how["method"], layers=how.get("layers"), settings=settings
        ).id
    return ids


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("count", "out", "dtype"),
    [
        (6, 1, torch.float32),  # after it comes one of every kind
        pytest.param(10, 3, torch.float32, marks=SLOW),
        pytest.param(10, 3, torch.bfloat16, marks=SLOW),
    ],
)
def test_edits_without_one_are_bitwise_the_others(
    tmp_path: Path, store: MomentStore, count: int, out: int, dtype: torch.dtype
) -> None:
    ledger, session = begun(tmp_path / "a", store, dtype=dtype)
    ids = made(ledger, session, list(range(count)))
    ledger.revert(ids[out], session)
    other, never = begun(tmp_path / "b", store, dtype=dtype)
    made(other, never, [number for number in range(count) if number != out])
    assert equal_bits(weights_of(session.lm), weights_of(never.lm))
    for found, expected in zip(ledger.updates(), other.updates(), strict=True):
        assert found.id == expected.id
        assert found.info["targets"] == expected.info["targets"]
        for part, same in zip(found.layers, expected.layers, strict=True):
            assert equal_bits(list(part.tensors.values()), list(same.tensors.values()))
    # ... and a session that is opened from the disk is the same model.
    opened = ledger.session(build_tiny("llama", dtype=dtype), store=store)
    assert equal_bits(weights_of(opened.lm), weights_of(never.lm))
    opened.rollback()
    assert equal_bits(weights_of(opened.lm), weights_of(build_tiny("llama", dtype=dtype)))
    assert ledger.verify().ok


def test_replace_is_one_record_and_bitwise_the_new_edit_alone(tmp_path: Path, store: MomentStore) -> None:
    ledger, session = begun(tmp_path / "a", store)
    first = ledger.edit(session, [EIFFEL, JAPAN], "emmet", settings=QUICK)
    second = ledger.edit(session, [DARRIEUX], "emmet", settings=QUICK)
    changed = EditRequest(EIFFEL.prompt, EIFFEL.subject, "Tokyo")
    with pytest.raises(ConflictError, match="--replace"):
        ledger.edit(session, [changed], "emmet", settings=QUICK)
    record = ledger.edit(session, [changed], "emmet", settings=QUICK, replace=True)
    assert (record.operation, record.number) == ("replace", 3)
    assert record.details["reverts"] == [first.id]
    kept, again, new = ledger.state()
    assert [kept.edit, again.edit, new.edit] == [first.id, second.id, record.id]
    assert (kept.dropped, again.dropped) == ((0,), ()), "the other fact of that edit stays"
    other, never = begun(tmp_path / "b", store)
    for request in (JAPAN, DARRIEUX, changed):
        other.edit(never, [request], "emmet", settings=QUICK)
    assert equal_bits(weights_of(session.lm), weights_of(never.lm))
    # The last of the first edit's facts goes, and with it the edit.
    ledger.edit(session, [EditRequest(JAPAN.prompt, JAPAN.subject, "Rome")], "emmet", settings=QUICK, replace=True)
    assert first.id not in {entry.edit for entry in ledger.state()}
    assert ledger.verify().ok


def test_the_algebraic_way_is_that_of_undo_with_the_metrics_of_the_session(tmp_path: Path, store: MomentStore) -> None:
    """What `emendo.updates.without` gives, by which metrics; how near that is to the replay is tested there."""
    ledger, session = begun(tmp_path / "a", store)
    settings = {**QUICK, "history.weight": 1.0}
    ids = [ledger.edit(session, [fact], "emmet", layers=[1], settings=settings).id for fact in FACTS[:4]]
    whole = ledger.updates()
    assert ledger.needs_model(ids[1], "algebraic"), "they preserve each other, which takes the second moments"
    with pytest.raises(LedgerError, match="second moments"):
        ledger.revert(ids[1], how="algebraic")
    record = ledger.revert(ids[1], session, how="algebraic")
    config = session.resolve("emmet", layers=[1], settings=settings).config
    assert isinstance(config, MethodConfig)
    expected = without(whole, 1, session.preservation(config))
    assert [update.id for update in ledger.updates()] == [update.id for update in expected]
    assert [update.id for update in session.applied_updates] == [update.id for update in expected]
    assert [edit.id for edit in ledger.history().edits()] == [ids[0], ids[2], ids[3]]
    assert [entry["edit"] for entry in record.details["remade"]] == ids[2:]
    assert ledger.verify().ok


def test_the_algebraic_way_needs_no_model_where_nothing_is_preserved(tmp_path: Path, store: MomentStore) -> None:
    ledger, session = begun(tmp_path / "a", store)
    ids = [ledger.edit(session, [fact], "emmet", layers=[1], settings=QUICK).id for fact in FACTS[:3]]
    assert not ledger.needs_model(ids[0], "algebraic")
    record = ledger.revert(ids[0], how="algebraic")
    assert record.details["environment_changed"] == {}
    ledger.sync(session)
    assert len(session.applied_updates) == 2
    told = [entry["relative_change"] for entry in record.details["remade"]]
    assert told == [update.info["algebraic"]["relative_change"] for update in session.applied_updates]
    assert all(0 < change["1"] < 1 for change in told)


def test_compacted_weights_are_within_the_tolerance(tmp_path: Path, store: MomentStore) -> None:
    ledger, session = begun(tmp_path / "a", store)
    ids = made(ledger, session, [0, 1, 2])
    before = weights_of(session.lm)
    ledger.compact(1e-6)
    ledger.sync(session)
    assert len(session.applied_updates) == 1
    for layer, (found, expected) in enumerate(zip(weights_of(session.lm), before, strict=True)):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()), msg=str(layer))
    made(ledger, session, [3])
    ledger.revert(ids[1], session)
    other, never = begun(tmp_path / "b", store)
    made(other, never, [0, 2, 3])
    assert equal_bits(weights_of(session.lm), weights_of(never.lm))


# ---- what is refused, and what an error leaves -----------------------------------------------------------------


def test_another_model_is_refused(tmp_path: Path, store: MomentStore) -> None:
    ledger, _ = begun(tmp_path / "a", store)
    for other, what in ((build_tiny("llama", seed=1), "weights_sha256"), (build_tiny("gpt2"), "type: found gpt2")):
        with pytest.raises(BaseMismatchError, match=what):
            ledger.session(other, store=store)
    with pytest.raises(BaseMismatchError, match=r"dtype: found bfloat16, expected float32.*--dtype float32"):
        ledger.session(build_tiny("llama", dtype=torch.bfloat16), store=store)


@pytest.mark.parametrize("fails", ["plan", "examine", "commit", "abandon"])
def test_an_edit_that_fails_leaves_ledger_and_session_at_the_state_before(
    tmp_path: Path, store: MomentStore, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, session = begun(tmp_path / "a", store)
    made(ledger, session, [0, 1])
    changed = EditRequest(FACTS[0].prompt, FACTS[0].subject, "Bordeaux")  # replacing replays edit 1 first
    before, chain = weights_of(session.lm), ledger.log()

    def fail(*_: object, **__: object) -> Any:
        raise InputError("on purpose")

    if fails == "abandon":
        with ledger.editing(session, [changed], replace=True) as pending:
            assert [update.id for update in session.applied_updates] != [update.id for update in ledger.updates()]
        assert pending.record is None
    else:
        if fails == "commit":
            monkeypatch.setattr(LedgerStore, "append", fail)
        settings = QUICK if fails != "plan" else {"target.steps": "many"}
        with pytest.raises((InputError, MethodError)):
            ledger.edit(
                session,
                [changed],
                "emmet",
                settings=settings,
                replace=True,
                examine=fail if fails == "examine" else None,
            )
    assert ledger.log() == chain
    assert equal_bits(weights_of(session.lm), before)
    assert [update.id for update in session.applied_updates] == [update.id for update in ledger.updates()]


def test_an_update_of_other_requests_is_not_committed(tmp_path: Path, store: MomentStore) -> None:
    ledger, session = begun(tmp_path / "a", store)
    update = session.plan([DARRIEUX], "emmet", settings=QUICK).update
    with pytest.raises(LedgerError, match="not of the requests"), ledger.editing(session, [EIFFEL]) as pending:
        pending.commit(update)
    with ledger.editing(session, [DARRIEUX]) as pending:
        pending.commit(update)
        with pytest.raises(LedgerError, match="committed already"):
            pending.commit(update)


def test_a_session_that_is_behind_is_brought_up_to_date(tmp_path: Path, store: MomentStore) -> None:
    ledger, session = begun(tmp_path / "a", store)
    behind = ledger.session(build_tiny("llama"), store=store)
    made(ledger, session, [0])
    made(ledger, behind, [1])  # another process, in effect
    assert len(behind.applied_updates) == 2
    assert [edit.requests[0].subject for edit in ledger.history().edits()] == ["Japan", "France"]


# ---- planning again what a record says -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_the_same_again_from_its_record(name: str, tiny_llama: EditableModel) -> None:
    """All values go through JSON and back: the resolved configuration is equal, not only near."""
    session = EditSession(tiny_llama)
    resolved = session.resolve(name, settings={"target.learning_rate": 0.1 + 0.2})
    edit = _kept(json.loads(json.dumps(resolved.to_dict())))
    method, layers = kept_method(edit)
    again = session.resolve(method, layers=layers)
    assert again.config == resolved.config


@pytest.mark.parametrize("given", [{"preservation.weight": 500}, {"preservation.weight": 15000}])
def test_values_that_a_preset_also_has_are_planned_again_as_they_were(
    given: dict[str, Any],
    tiny_llama: EditableModel,
    tmp_path: Path,
    store: MomentStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that the caller gave won over the preset when the edit was made; 15000 is the catalog's own value."""
    tiny = KnownModel("tiny", "llama", tiny_llama.n_layers, tiny_llama.d_model, tiny_llama.vocab_size)
    preset = Preset((1, 2), "a test", {"preservation.weight": 100.0})
    monkeypatch.setitem(PRESETS, "memit", {tiny: preset})
    ledger, session = begun(tmp_path / "a", store)
    assert session.resolve("memit").to_dict()["settings"]["preservation.weight"] == 100
    first = ledger.edit(session, [EIFFEL], "memit", settings=QUICK)
    second = ledger.edit(session, [DARRIEUX], "memit", settings={**QUICK, **given})
    ledger.revert(first.id, session)
    other, never = begun(tmp_path / "b", store)
    other.edit(never, [DARRIEUX], "memit", settings={**QUICK, **given})
    assert equal_bits(weights_of(session.lm), weights_of(never.lm))
    kept = next(edit for edit in ledger.history().edits() if edit.id == second.id)
    assert kept.method["settings"]["preservation.weight"] == given["preservation.weight"]


def test_a_record_of_exactly_the_catalogs_values_gets_no_preset(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = KnownModel("tiny", "llama", tiny_llama.n_layers, tiny_llama.d_model)
    monkeypatch.setitem(PRESETS, "memit", {tiny: Preset((1, 2), "a test", {"preservation.weight": 100.0})})
    session = EditSession(tiny_llama)
    resolved = session.resolve("memit", settings={"preservation.weight": METHODS["memit"].preservation.weight})
    method, layers = kept_method(_kept(json.loads(json.dumps(resolved.to_dict()))))
    assert session.resolve(method, layers=layers).config == resolved.config


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_baseline_is_the_same_again_from_its_record(name: str, tiny_llama: EditableModel) -> None:
    session = EditSession(tiny_llama)
    resolved = session.resolve(name)
    method, layers = kept_method(_kept(json.loads(json.dumps(resolved.to_dict()))))
    assert session.resolve(method, layers=layers).to_dict()["settings"] == resolved.to_dict()["settings"]


def test_a_baseline_of_exactly_the_catalogs_values_gets_no_preset(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = KnownModel("tiny", "llama", tiny_llama.n_layers, tiny_llama.d_model)
    preset = Preset((2,), "a test", {"fine_tune.max_change": 5e-5})
    monkeypatch.setitem(PRESETS, "ft-l", {tiny: preset})
    session = EditSession(tiny_llama)
    assert session.resolve("ft-l").to_dict()["settings"]["fine_tune.max_change"] == 5e-5
    for given in ({}, {"fine_tune.max_change": 5e-4}):
        resolved = session.resolve("ft-l", settings=given)
        method, layers = kept_method(_kept(json.loads(json.dumps(resolved.to_dict()))))
        assert session.resolve(method, layers=layers).config == resolved.config


def test_a_configuration_of_ones_own_is_planned_again_by_its_values(tmp_path: Path, store: MomentStore) -> None:
    ledger, session = begun(tmp_path / "a", store)
    own = replace(METHODS["emmet"], name="mine", source="an experiment", presets="")
    first = ledger.edit(session, [EIFFEL], "emmet", settings=QUICK)
    ledger.edit(session, [DARRIEUX], own, settings=QUICK)
    ledger.revert(first.id, session)
    other, never = begun(tmp_path / "b", store)
    other.edit(never, [DARRIEUX], own, settings=QUICK)
    assert equal_bits(weights_of(session.lm), weights_of(never.lm))


def test_other_second_moments_are_not_taken_in_silence(tmp_path: Path, store: MomentStore) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("The weather was calm that morning. " * 200)
    ledger, session = begun(tmp_path / "a", store)
    settings = {**QUICK, "moments.source": str(text)}
    first = ledger.edit(session, [EIFFEL], "memit", settings=settings)
    ledger.edit(session, [DARRIEUX], "memit", settings=settings)
    text.write_text("Because many people had asked before. " * 200)
    chain = ledger.log()
    with pytest.raises(LedgerError, match="other second moments"):
        ledger.revert(first.id, session)
    assert ledger.log() == chain
    assert len(session.applied_updates) == 2


def _kept(method: dict[str, Any]) -> Any:
    return StoredEdit("a" * 64, {0: EIFFEL}, method, 0)
