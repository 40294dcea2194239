"""Whether bits are promised where edits are made again: what computed then against what computes now."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emendo.cli.app import run
from emendo.cli.console import Terminal
from emendo.cli.ledger import tell_of_environment
from emendo.errors import EmendoWarning
from emendo.io import environment as module
from emendo.io.environment import changed_since, changes_in_words, computing, differing, environment
from emendo.ledger import EditLedger
from emendo.updates.removal import without
from emendo.updates.update import ModelUpdate
from tests.ledger_world import WorldPlanner, WorldSession, fact, new_ledger
from tests.unit.sequences import made, world

OTHER = {"instruction_set": "AVX-1024", "math_libraries": "a library", "kernel_choice": "MKL_CBWR=COMPATIBLE"}
"""What a processor of another kind would record."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What is made until `undo` is recorded as made by another processor."""
    here = module.processor
    monkeypatch.setattr(module, "processor", lambda device: {**here(device), **OTHER})
    return monkeypatch


def ledger_of_two(folder: Path) -> EditLedger:
    ledger, session = new_ledger(folder), WorldSession()
    for number in range(2):
        ledger.edit(session, [fact(number)])  # type: ignore[arg-type]
    return ledger


class HerePlanner(WorldPlanner):
    def environment(self) -> dict[str, str]:
        return environment("cpu")


def test_what_is_equal_is_promised_and_what_differs_is_named(tmp_path: Path) -> None:
    ledger = ledger_of_two(tmp_path / "ledger")
    found = ledger.verify()
    assert found.ok
    assert (found.edits, found.environment_changed) == (2, {})
    assert found.replay == "Planned again here, the 2 active edit(s) would be the same bit for bit"
    assert found.to_dict()["environment_changed"] == {}
    record = ledger.revert(ledger.log()[1].id, HerePlanner())
    assert record.details["environment_changed"] == {}
    ledger.checkout("base")
    assert ledger.verify().replay == "No edit is active, so there is nothing to plan again"


def test_another_processor_is_told_by_verify_and_by_replay(tmp_path: Path, elsewhere: pytest.MonkeyPatch) -> None:
    ledger = ledger_of_two(tmp_path / "ledger")
    ledger.compact()  # the edits inside are what would be planned again
    elsewhere.undo()
    found = ledger.verify()
    assert found.ok, "nothing is wrong with the files"
    now = environment("cpu")
    assert found.environment_changed == {name: [was, now[name]] for name, was in OTHER.items()}
    assert "\n" not in found.replay
    assert "bit for bit is not promised" in found.replay
    assert f"instruction_set was AVX-1024 and is {now['instruction_set']}" in found.replay
    first = ledger.history().edits()[0].id
    record = ledger.revert(first, HerePlanner())
    assert record.details["environment_changed"] == {name: [was, now[name]] for name, was in OTHER.items()}


def test_what_was_not_recorded_is_not_taken_for_the_same(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    planner = WorldPlanner()
    planner.move_to([])
    ledger.commit_edit(planner.plan(_stored(fact(1))))  # by an Emendo that kept versions alone
    told = ledger.verify().replay
    assert "not promised" in told
    assert told.endswith("matmul_precision not recorded")


def _stored(request: Any) -> Any:
    from emendo.ledger import StoredEdit

    return StoredEdit("a" * 64, {0: request}, {}, 0)


def sequence(record: dict[str, str] | None) -> tuple[ModelUpdate, ...]:
    """Three updates that say what computed them."""
    updates = made(world((1, 1, 1)), range(3))
    more = {"computing": record} if record else {}
    return tuple(replace(update, info={**update.info, **more}) for update in updates)


def test_algebra_on_another_processor_says_so_in_one_line() -> None:
    here = computing("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = without(sequence(here), 0, {})
        assert len(without(sequence(None), 0, {})) == 2  # nothing is known of what is not recorded
        without(sequence({**here, **OTHER}), 2, {})  # what stays was not worked out anew
    with pytest.warns(
        EmendoWarning, match=r"instruction_set was AVX-1024 and is .*bit for bit is not promised"
    ) as told:
        found = without(sequence({**here, **OTHER}), 0, {})
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert [update.id for update in found] == [update.id for update in same]


def test_records_of_any_kind_are_compared_and_an_accelerator_that_is_not_here_is_named() -> None:
    here = computing("cpu")
    assert differing(here, here) == {}
    assert changed_since([here, {**here, "device": "cpu"}], computing) == {}
    changed = changed_since([{**here, "device": "cuda:7", "accelerator": "GPU of another machine"}], computing)
    assert changed["accelerator"][0] == "GPU of another machine"
    assert "device" not in changed
    odd: Any = {**here, "threads": [1] * 1000, "device": 3}
    told = changes_in_words(changed_since([odd], computing))
    assert "threads was [1, 1" in told
    assert len(told) < 400
    assert changes_in_words({}) == ""


def test_the_commands_say_it_in_one_line(
    tmp_path: Path, elsewhere: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(ledger_of_two(tmp_path / "ledger").store.folder)
    elsewhere.undo()
    assert run(["ledger", "verify", "--ledger", folder]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 records and 2 update files" in said
    assert "bit for bit is not promised: instruction_set was AVX-1024 and is" in said
    assert run(["ledger", "verify", "--ledger", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["environment_changed"].keys() == OTHER.keys()
    for details in ({"environment_changed": {"threads": ["1", "2"]}}, {"environment_changed": {}}, {}):
        tell_of_environment(Terminal(), details)
    told = " ".join(capsys.readouterr().out.split())
    assert told == (
        "Note: what was made again may differ in its last bits, bit for bit is not promised: threads was 1 and is 2"
    )
