"""A ledger without a model: what is kept, taken out, put back and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import emendo.ledger.files as files_module
from emendo.errors import BaseMismatchError, ConflictError, InputError, LedgerError, OutputError, RequestError
from emendo.ledger import EditLedger
from emendo.requests import EditRequest
from emendo.updates.update import ModelUpdate
from tests.ledger_world import BASE, WorldPlanner, WorldSession, add, fact, facts_of, new_ledger, planned


@pytest.fixture
def ledger(tmp_path: Path) -> EditLedger:
    return new_ledger(tmp_path / "ledger")


def ids(ledger: EditLedger) -> list[str]:
    return [update.id for update in ledger.updates()]


# ---- records ---------------------------------------------------------------------------------------------------


def test_a_record_says_who_when_why_what_and_how(ledger: EditLedger) -> None:
    update = planned([fact(1), fact(2)], [], seed=3)
    record = ledger.commit_edit(update, message="ticket 4711", metrics={"ES": 100.0})
    again = EditLedger(ledger.store.folder).log()
    assert again[-1] == record
    assert [entry.operation for entry in again] == ["init", "edit"]
    assert (record.who, record.message, record.number, record.parent) == ("tester", "ticket 4711", 1, again[0].id)
    assert record.when.endswith("+00:00")
    assert record.details["requests"] == [fact(1).to_dict(), fact(2).to_dict()]
    assert record.details["seed"] == 3
    assert record.details["method"]["name"] == "emmet"
    assert record.details["metrics"] == {"ES": 100.0}
    assert record.details["moments"] == "c" * 64
    (entry,) = ledger.state()
    assert (entry.edit, entry.update) == (record.id, update.id)
    assert ModelUpdate.load(ledger.store.object_path(entry.file)).id == update.id


def test_a_record_does_not_repeat_the_state(ledger: EditLedger) -> None:
    for number in range(5):
        add(ledger, fact(number))
    assert [(record.keep, len(record.added)) for record in ledger.log()] == [(0, 0), *((n, 1) for n in range(5))]
    assert [len(ledger.state(record.id)) for record in ledger.log()] == [0, 1, 2, 3, 4, 5]


def test_records_are_found_by_the_beginning_of_their_id(ledger: EditLedger) -> None:
    id = add(ledger, fact(1))
    assert ledger.record(id[:8]).id == ledger.record(id.upper()).id == id
    for wrong in ("", "abc", "zzzz", "../../etc/passwd", id + "0", "0" * 64, "....", id[:8] + "/", "a\x00bc"):
        with pytest.raises(LedgerError, match="no record"):
            ledger.record(wrong)


def test_a_folder_with_other_files_and_a_second_ledger_are_refused(ledger: EditLedger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="already"):
        new_ledger(ledger.store.folder)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(LedgerError, match=r"other files \(config.json\)"):
        new_ledger(tmp_path / "model")
    with pytest.raises(LedgerError, match="emendo ledger init"):
        EditLedger(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


# ---- edits -----------------------------------------------------------------------------------------------------


def test_an_update_of_another_state_or_model_is_refused(ledger: EditLedger) -> None:
    stale = planned([fact(2)], [])
    add(ledger, fact(1))
    before = ledger.log()
    with pytest.raises(LedgerError, match="on the unedited model, and the ledger holds 1 update"):
        ledger.commit_edit(stale)
    update = planned([fact(2)], ledger.updates())
    foreign = ModelUpdate(update.layers, {**update.base, "weights_sha256": "d" * 64}, update.preceding, update.info)
    with pytest.raises(BaseMismatchError, match=r"found dddddddddddd, expected aaaaaaaaaaaa.*emendo ledger init"):
        ledger.commit_edit(foreign)
    with pytest.raises(LedgerError, match="changes no weights"):
        ledger.commit_edit(ModelUpdate((), update.base, update.preceding, update.info))
    with pytest.raises(LedgerError, match="does not say how it was planned"):
        ledger.commit_edit(ModelUpdate(update.layers, update.base, update.preceding, {}))
    assert ledger.log() == before


def test_a_fact_that_is_there_is_told_and_another_target_is_a_conflict(ledger: EditLedger) -> None:
    old = add(ledger, fact(1), fact(2))
    # Spacing and the composition of accents do not make another fact.
    same = EditRequest("{} is  located in the city of ", "Tower 1", " Rome")
    with pytest.raises(RequestError, match="already in this ledger with the same target") as told:
        add(ledger, same)
    assert old[:12] in str(told.value)
    assert not isinstance(told.value, ConflictError)
    with pytest.raises(ConflictError, match=f"--replace.*emendo ledger revert {old[:12]} --ledger") as refused:
        add(ledger, fact(3), fact(2, "Tokyo"))
    assert refused.value.problems == (f"'Tower 2 is located in the city of' → 'Rome' by {old[:12]}, and now → 'Tokyo'",)
    ledger.revert(old)
    add(ledger, fact(2, "Tokyo"))  # the way out
    assert facts_of(ledger) == ["Tower 2"]


# ---- taking out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", range(1, 11))
def test_reverting_any_edit_is_never_having_made_it(tmp_path: Path, gone: int) -> None:
    ledger, other = new_ledger(tmp_path / "a"), new_ledger(tmp_path / "b")
    made = {number: add(ledger, fact(number), seed=number) for number in range(1, 11)}
    for number in made:
        if number != gone:
            add(other, fact(number), seed=number)
    record = ledger.revert(made[gone], WorldPlanner() if gone < 10 else None)
    assert ids(ledger) == ids(other)
    assert record.keep == gone - 1
    assert record.details["reverts"] == [made[gone]]
    assert [entry["edit"] for entry in record.details["remade"]] == [made[n] for n in made if n > gone]
    assert [edit.id for edit in ledger.history().edits()] == [made[n] for n in made if n != gone]
    assert ledger.verify().ok


def test_reverts_add_up_in_any_order(tmp_path: Path) -> None:
    ledger, other = new_ledger(tmp_path / "a"), new_ledger(tmp_path / "b")
    made = [add(ledger, fact(number)) for number in range(6)]
    for gone in (4, 1, 5):
        ledger.revert(made[gone], WorldPlanner())
    for number in (0, 2, 3):
        add(other, fact(number))
    assert ids(ledger) == ids(other)
    with pytest.raises(LedgerError, match="is not active"):
        ledger.revert(made[4], WorldPlanner())
    with pytest.raises(LedgerError, match=r"is a revert, not an active edit.*emendo ledger checkout"):
        ledger.revert(ledger.log()[-1].id, WorldPlanner())


def test_later_edits_need_a_planner(ledger: EditLedger) -> None:
    first, second = add(ledger, fact(1)), add(ledger, fact(2))
    assert (ledger.needs_model(first), ledger.needs_model(second)) == (True, False)
    with pytest.raises(LedgerError, match=r"1 later edit\(s\) .*--model MODEL"):
        ledger.revert(first)
    with pytest.raises(LedgerError, match="did you mean 'replay'"):
        ledger.revert(first, WorldPlanner(), how="repaly")
    ledger.revert(second)
    assert facts_of(ledger) == ["Tower 1"]


def test_a_planner_that_fails_leaves_ledger_and_model_as_they_were(ledger: EditLedger) -> None:
    class Failing(WorldPlanner):
        def plan(self, edit: object) -> ModelUpdate:
            raise InputError("the text of the second moments is gone")

    first = add(ledger, fact(1))
    add(ledger, fact(2))
    before, planner = ledger.log(), Failing()
    with pytest.raises(InputError, match="is gone"):
        ledger.revert(first, planner)
    assert ledger.log() == before
    assert [update.id for update in planner.updates] == ids(ledger)


def test_another_environment_is_told(ledger: EditLedger) -> None:
    class Newer(WorldPlanner):
        def environment(self) -> dict[str, str]:
            return {"emendo": "newer"}

    first = add(ledger, fact(1))
    add(ledger, fact(2))
    record = ledger.revert(first, Newer())
    assert record.details["environment_changed"] == {"emendo": ["test", "newer"]}


# ---- states ----------------------------------------------------------------------------------------------------


def test_checkout_goes_anywhere_and_back(ledger: EditLedger) -> None:
    first, second = add(ledger, fact(1)), add(ledger, fact(2))
    whole = ids(ledger)
    ledger.checkout("base")
    assert ledger.state() == ()
    ledger.checkout(first)
    assert ids(ledger) == whole[:1]
    other = add(ledger, fact(3))
    assert facts_of(ledger) == ["Tower 1", "Tower 3"]
    record = ledger.checkout(second[:10])
    assert (ids(ledger), record.details["target"], record.keep) == (whole, second, 1)
    assert facts_of(ledger) == ["Tower 1", "Tower 2"]
    assert len(ledger.state(other)) == 2
    assert ledger.state("base") == ()
    assert ledger.verify().ok


def test_one_file_for_a_state(ledger: EditLedger, tmp_path: Path) -> None:
    first = add(ledger, fact(1))
    add(ledger, fact(2))
    merged = ModelUpdate.load(ledger.merged().save(tmp_path / "state.safetensors"))
    assert not merged.preceding
    for layer, part in enumerate(merged.layers):
        expected = sum(update.layers[layer].delta() for update in ledger.updates())
        assert float((part.delta() - expected).abs().max()) < 1e-6
    assert ledger.merged(first).id == ids(ledger)[0]
    with pytest.raises(InputError, match="nothing to merge"):
        ledger.merged("base")


# ---- folding ---------------------------------------------------------------------------------------------------


def test_compact_keeps_the_sum_and_says_what_it_gained(ledger: EditLedger) -> None:
    with pytest.raises(LedgerError, match="nothing to fold"):
        ledger.compact()
    for number in range(6):
        add(ledger, fact(number))
    before = ledger.merged()
    record = ledger.compact(1e-6)
    (folded,) = ledger.updates()
    for new, old in zip(folded.layers, before.layers, strict=True):
        assert float((new.delta() - old.delta()).norm()) <= 1e-6 * float(old.delta().norm())
        assert (old.rank, new.rank) == (6, 3)
    details = record.details
    assert [row["ranks"] for row in details["layers"]] == [[6, 3], [6, 3]]
    assert details["error"] <= details["tolerance"] == 1e-6
    assert details["bytes"][1] == ledger.state()[0].size < details["bytes"][0]
    assert facts_of(ledger) == [f"Tower {number}" for number in range(6)]
    with pytest.raises(ConflictError):
        add(ledger, fact(4, "Tokyo"))  # a folded fact is still known


def test_an_edit_inside_a_folded_update_can_be_taken_out(tmp_path: Path) -> None:
    ledger, other = new_ledger(tmp_path / "a"), new_ledger(tmp_path / "b")
    made = [add(ledger, fact(number)) for number in range(3)]
    ledger.compact()
    made.append(add(ledger, fact(3)))
    ledger.compact()
    made.append(add(ledger, fact(4)))
    for number in (0, 2, 3, 4):
        add(other, fact(number))
    ledger.revert(made[1], WorldPlanner())
    assert ids(ledger) == ids(other), "what was folded gives way to what it was folded from"
    assert ledger.verify().ok


def test_what_comes_after_a_folded_update_leaves_it_folded(ledger: EditLedger) -> None:
    add(ledger, fact(1))
    add(ledger, fact(2))
    folded = ledger.compact()
    last = add(ledger, fact(3))
    ledger.revert(last)
    assert [entry.edit for entry in ledger.state()] == [folded.id]
    ledger.revert(folded.id, WorldPlanner())
    assert ledger.state() == ()


def test_edits_can_be_folded_twice_and_the_inner_one_unfolded(ledger: EditLedger) -> None:
    add(ledger, fact(1))
    add(ledger, fact(2))
    inner = ledger.compact()
    third = add(ledger, fact(3))
    ledger.compact()
    ledger.revert(third, WorldPlanner())
    assert [entry.edit for entry in ledger.state()] == [inner.id]


# ---- the command, where no model is needed ---------------------------------------------------------------------


def test_records_are_json_that_people_can_read(ledger: EditLedger) -> None:
    add(ledger, EditRequest("{} liegt in", "Der Eiffelturm 埃菲尔", "Köln"))
    record = ledger.log()[-1]
    text = ledger.store.record_path(record.id).read_text(encoding="utf-8")
    assert "埃菲尔" in text
    document = json.loads(text)
    assert document["parent"] == ledger.log()[0].id
    assert document["added"][0]["edit"] is None, "a record cannot hold its own hash"
    assert ledger.base == BASE


@pytest.mark.parametrize("unconfirmed", [False, True])
def test_an_error_after_the_commit_leaves_the_session_at_what_the_ledger_has(
    unconfirmed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, session = new_ledger(tmp_path / "ledger"), WorldSession()
    any_session: Any = session

    def fails(folder: Path) -> None:
        if folder == ledger.store.folder:
            raise OutputError("the disk did not confirm")

    def edit_and_fail() -> None:
        with ledger.editing(any_session, [fact(1)]) as pending:
            if unconfirmed:
                monkeypatch.setattr(files_module, "sync_folder", fails)
            pending.commit(session.plan([fact(1)]).update)
            raise OutputError("what came after the commit")

    with pytest.raises(OutputError):
        edit_and_fail()
    assert facts_of(ledger) == ["Tower 1"]
    assert [update.id for update in session.applied_updates] == [entry.update for entry in ledger.state()]
