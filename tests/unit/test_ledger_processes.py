"""A ledger and several processes: killed ones, waiting ones, and two that write at once."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from emendo.errors import LedgerBusyError, LedgerError
from emendo.ledger import EditLedger
from emendo.ledger.change import stored
from emendo.ledger.lock import writer_lock
from emendo.ledger.pending import edit_details
from emendo.ledger.stamp import new_record
from tests.ledger_world import add, fact, facts_of, new_ledger, planned

pytestmark = pytest.mark.crash
TESTS = Path(__file__).parents[1]


def python(*arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=env)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


# ---- kills -----------------------------------------------------------------------------------------------------


def test_kills_at_random_instants_lose_nothing() -> None:
    found = result(python(str(TESTS / "ledger_kills.py"), "--kills", "12"))
    assert found["kills"] == sum(found["killed_during"].values()) == 12
    assert found["reported_and_found"] > 10


@pytest.mark.slow
def test_many_kills_at_random_instants_lose_nothing() -> None:
    found = result(python(str(TESTS / "ledger_kills.py"), "--kills", "200", "--seed", "1"))
    assert set(found["killed_during"]) >= {"edit", "revert", "compact"}


def test_a_kill_before_any_step_on_the_disk_leaves_before_or_after() -> None:
    found = result(python(str(TESTS / "ledger_steps.py"), "edit"))
    assert found["edit"]["kills"] > 30
    assert 0 < found["edit"]["after"] < 10, "most steps come before the one that makes it happen"


def test_a_kill_in_mid_replace_leaves_the_old_fact_or_the_new() -> None:
    found = result(python(str(TESTS / "ledger_steps.py"), "replace"))
    assert found["replace"]["kills"] > 40, "the edits that came after the old one are written too"
    assert 0 < found["replace"]["after"] < 10


@pytest.mark.slow
def test_a_kill_before_any_step_of_any_operation_leaves_before_or_after() -> None:
    found = result(python(str(TESTS / "ledger_steps.py")))
    assert len(found) == 14


# ---- several writers -------------------------------------------------------------------------------------------

WRITER = """
import os, sys
os.fsync = lambda handle: None  # takes nothing from the lock
from emendo.errors import LedgerError
from emendo.ledger import EditLedger
from tests.ledger_world import fact, planned
ledger, first, count = EditLedger(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
again = 0
for number in range(first, first + count):
    while True:
        try:
            ledger.commit_edit(planned([fact(number)], ledger.updates()))
            break
        except LedgerError as error:
            assert "plan it again" in str(error), error  # the other one was quicker: told, and nothing written
            again += 1
print('{"again": %d}' % again)
"""


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    writers = [python("-c", WRITER, str(ledger.store.folder), str(first), "20") for first in (100, 200)]
    for writer in writers:
        result(writer)
    assert ledger.verify().ok
    assert ledger.verify().leftovers == 0
    expected = [f"Tower {number}" for first in (100, 200) for number in range(first, first + 20)]
    assert sorted(facts_of(ledger)) == expected
    assert len(ledger.log()) == 41


def test_a_second_writer_waits_and_is_told_for_whom(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    told: list[str] = []
    other = EditLedger(ledger.store.folder, timeout=30, waiting=told.append)
    with ledger.store.locked("edit", timeout=0):
        thread = threading.Thread(target=lambda: other.checkout("base"))
        thread.start()
        until = time.monotonic() + 30
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        assert len(ledger.log()) == 1
    thread.join(30)
    assert len(ledger.log()) == 2
    (line,) = told
    assert line.startswith("waiting for 'edit' of ")
    assert f"process {os.getpid()} on " in line


def test_a_second_writer_that_cannot_wait_is_refused(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    other = EditLedger(ledger.store.folder, timeout=0)
    with ledger.store.locked("revert", timeout=0):
        with pytest.raises(LedgerBusyError, match=r"is being written by 'revert' of .*--wait SECONDS") as refused:
            other.checkout("base")
        assert facts_of(other) == [], "looking does not wait"
    assert refused.value.exit_code == 1
    other.checkout("base")


def test_a_lock_file_that_was_taken_away_lets_no_second_writer_in(tmp_path: Path) -> None:
    lock, entered, leave = tmp_path / "lock", threading.Event(), threading.Event()
    waits = threading.Event()

    def wait_for_it() -> None:
        with writer_lock(lock, "edit", timeout=30, waiting=lambda _: waits.set()):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=wait_for_it)
    with writer_lock(lock, "edit", timeout=0):
        thread.start()
        assert waits.wait(30)
        lock.unlink()  # the waiter holds the old file open
    with contextlib.ExitStack() as second:
        if not entered.wait(0.3):  # it may be quicker than the next line, and then holds the new file
            second.enter_context(writer_lock(lock, "revert", timeout=30))
        else:
            with pytest.raises(LedgerBusyError):
                second.enter_context(writer_lock(lock, "revert", timeout=0))
    leave.set()
    thread.join(30)
    assert entered.is_set()


def test_a_writer_whose_lock_was_taken_away_overwrites_nothing(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    update = planned([fact(1)], [])
    other = EditLedger(ledger.store.folder, timeout=0)
    with ledger.store.locked("edit", timeout=0):
        history = ledger.history()
        details = edit_details(update, {}, None, None)
        (ledger.store.folder / "lock").unlink()
        other.checkout("base")
        late = new_record(history, "edit", active=[stored(ledger.store, update)], details=details, who="a", message="")
        with pytest.raises(LedgerError, match=r"another process wrote .* lock"):
            ledger.store.append(late)
    assert [record.operation for record in ledger.log()] == ["init", "checkout"]
    add(ledger, fact(1))
    assert ledger.verify().ok
    assert ledger.verify().leftovers == 0


def test_a_killed_writer_holds_no_lock(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    code = (
        "import sys, time; from emendo.ledger import LedgerStore\n"
        "with LedgerStore(sys.argv[1]).locked('edit', timeout=0):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    process = python("-c", code, str(ledger.store.folder))
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LedgerBusyError, match=f"process {process.pid} "):
        EditLedger(ledger.store.folder, timeout=0).checkout("base")
    process.kill()
    process.communicate()
    EditLedger(ledger.store.folder, timeout=5).checkout("base")
    add(ledger, fact(1))


# ---- looking is quick ------------------------------------------------------------------------------------------

LOOK = """
import sys
from emendo.cli.app import run
for arguments in (["log"], ["show", sys.argv[2]], ["checkout"]):
    assert run(["ledger", *arguments, "--ledger", sys.argv[1]]) == 0
print('{"torch": %s}' % str("torch" in sys.modules).lower())
"""


def test_looking_loads_no_torch(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger")
    id = add(ledger, fact(1))
    assert result(python("-c", LOOK, str(ledger.store.folder), id)) == {"torch": False}


# ---- interrupts ------------------------------------------------------------------------------------------------


def test_an_interrupt_at_any_line_leaves_before_or_after_and_says_which() -> None:
    """Every 211th line here, once and twice; the script does every one."""
    found = result(python(str(TESTS / "ledger_interrupts.py"), "--stride", "211", "--twice", "2"))
    assert set(found) == {"init", "edit", "replace", "revert", "checkout", "compact"}
    assert all(counts["interrupts"] > 1 for counts in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["init", "edit", "replace", "revert", "checkout", "compact"])
def test_an_interrupt_at_every_line_leaves_before_or_after_and_says_which(name: str) -> None:
    found = result(python(str(TESTS / "ledger_interrupts.py"), "--twice", "400", name))[name]
    assert 0 < found["after"] < found["interrupts"]
