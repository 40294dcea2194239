"""What a ledger costs as it grows: files that are read are counted, and thousands of folds lie inside each other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from emendo.errors import LedgerError
from emendo.ledger import EditLedger, History, Record
from emendo.ledger.record import Active
from emendo.updates.merge import merge
from tests.ledger_world import BASE, METHOD, WorldPlanner, WorldSession, add, fact, facts_of, new_ledger, planned


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def ledger(tmp_path: Path) -> EditLedger:
    return new_ledger(tmp_path / "ledger")


def reads(monkeypatch: pytest.MonkeyPatch, operation: Any) -> list[str]:
    """Names of the files of a ledger that an operation opens to read."""
    opened: list[str] = []
    call = os.open

    def noted(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            opened.append(Path(path).name)
        return call(path, flags, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", noted)
        operation()
    return opened


def sizes(ledger: EditLedger) -> dict[str, int]:
    """Bytes of every file of a ledger, by name."""
    return {path.name: path.stat().st_size for path in ledger.store.folder.rglob("*") if path.is_file()}


def test_an_edit_reads_and_writes_as_much_after_ninety_others_as_after_ten(
    ledger: EditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = WorldSession()
    counts, written = [], []
    for number in range(10, 100):  # of two digits: a number of one digit is one byte less
        if number in (20, 99):  # records settle some moments after they were written
            monkeypatch.setattr("emendo.ledger.store._TICK", -(10**12))
            before = sizes(ledger)
            counts.append(len(reads(monkeypatch, lambda n=number: ledger.edit(session, [fact(n)]))))
            written.append(sorted(size for name, size in sizes(ledger).items() if name not in before))
        else:
            ledger.edit(session, [fact(number)])
    assert counts[0] == counts[1] < 15
    assert written[0] == written[1], "one record and one update file, which repeat nothing"
    assert len(written[0]) == 2
    assert [update.id for update in session.applied_updates] == [update.id for update in ledger.updates()]


@pytest.mark.parametrize("operation", ["verify", "compact", "log", "checkout"])
def test_every_operation_reads_and_writes_in_proportion(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 10 to 20 active updates as much more as from 20 to 30: nothing is read again for each of the others."""
    work = {
        "verify": lambda at: EditLedger(at).verify(),
        "compact": lambda at: EditLedger(at).compact(),
        "log": lambda at: EditLedger(at).log(),
        "checkout": lambda at: EditLedger(at).checkout("base"),
    }[operation]
    growing, session = new_ledger(tmp_path / "ledger"), WorldSession()
    files, data = [], []
    for number in range(10, 40):
        growing.edit(session, [fact(number)])  # type: ignore[arg-type]
        if number in (19, 29, 39):
            at = Path(shutil.copytree(growing.store.folder, tmp_path / f"copy-{number}"))
            before = sizes(EditLedger(at))
            opened = reads(monkeypatch, lambda at=at: work(at))
            after = sizes(EditLedger(at))
            files.append(len(opened))
            data.append(sum(after[name] for name in opened if name in after) + sum(after.values()))
            data[-1] -= sum(before.values())
    assert files[2] - files[1] == files[1] - files[0] > 0
    # The fold of more keeps more keys and facts; numbers in it differ by some digits.
    assert data[2] - data[1] == pytest.approx(data[1] - data[0], rel=0.05)


@pytest.mark.parametrize("settled", [True, False])
def test_a_record_that_was_altered_after_it_was_read_is_noticed(
    settled: bool, ledger: EditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the size or the time of its file; in the same tick of the clock, by reading it again."""
    id = add(ledger, fact(1))
    add(ledger, fact(2))
    path = ledger.store.record_path(id)
    monkeypatch.setattr("emendo.ledger.store._TICK", -(10**18) if settled else 10**18)
    ledger.log()
    data = path.read_bytes()
    old = path.stat()
    path.write_bytes(data.replace(b"Rome", b"Oslo"))
    if not settled:
        monkeypatch.setattr("emendo.ledger.store._file", lambda path: (1, len(data), 0, 0))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    with pytest.raises(LedgerError, match=f"{id}.*was altered"):
        ledger.log()
    with pytest.raises(LedgerError, match=f"{id}.*was altered"):
        add(ledger, fact(3))


# ---- folds inside folds ----------------------------------------------------------------------------------------


def record(chain: list[Record], operation: str, keep: int, name: str, **details: Any) -> None:
    entry = Active(None, *(f"{digest}{len(chain):063x}" for digest in "bc"), 1)
    parent = chain[-1].id
    chain.append(Record(len(chain), parent, operation, "", "", name, keep, (entry,), details))


def folded_chain(folds: int) -> list[Record]:
    """An edit, a fold, an edit, a fold ...: each fold holds the one before it."""
    chain = [Record(0, None, "init", "", "", details={"base": BASE, "model": ""})]
    for number in range(folds):
        requests = [fact(number).to_dict()]
        plan = {"requests": requests, "method": METHOD, "seed": 0, "moments": "", "environment": {}}
        record(chain, "edit", min(number, 1), f"edit {number}", **plan)
        record(chain, "compact", 0, f"fold {number}", tolerance=0.0, error=0.0, layers=[], bytes=[1, 1])
    return chain


def test_three_thousand_folds_inside_each_other_are_walked() -> None:
    chain = folded_chain(3000)
    history = History(chain)
    assert len(history.active) == 1
    edits = [record.id for record in chain if record.operation == "edit"]
    assert [edit.id for edit in history.edits()] == edits
    assert history.reverted_by(chain[-1]) == edits
    for place in (0, 1500, 2999):
        kept, redo = history.split(history.active, lambda edit, place=place: edit.id == edits[place])
        assert [edit.id for edit in redo] == edits[place:]
        assert [edit.id for edit in history.edits(kept)] == edits[:place]
        assert len(kept) == (place > 0), "one fold, of all before it"
    assert history.split(history.active, lambda edit: False) == (list(history.active), [])


def test_an_edit_inside_many_folds_is_taken_out_and_leaves_the_others(ledger: EditLedger) -> None:
    for number in range(40):
        add(ledger, fact(number))
        ledger.compact()
    inside = [edit.id for edit in ledger.history().edits()]
    assert ledger.verify().ok
    ledger.revert(inside[7], WorldPlanner())
    assert facts_of(ledger) == [f"Tower {number}" for number in range(40) if number != 7]
    assert len(ledger.state()) == 1 + 32, "what was folded before it stays folded"
    ledger.compact()
    ledger.revert(ledger.log()[-1].id)
    assert ledger.state() == ()


def test_a_state_that_holds_a_fold_twice_is_refused_and_not_walked_for_ever() -> None:
    chain = folded_chain(2)
    twice = [Active(chain[-1].id, f"d{place:063x}", "e" * 64, 1) for place in range(2)]
    history = History(chain)
    with pytest.raises(LedgerError, match="folded more than once"):
        history.edits(twice)
    with pytest.raises(LedgerError, match="is not in it"):
        history.edits([Active("f" * 64, "d" * 64, "e" * 64, 1)])


def test_the_record_of_a_long_sequence_does_not_repeat_all_before_each_part() -> None:
    updates: list[Any] = []
    for number in range(30):
        updates.append(planned([fact(number)], updates))
    apart = merge(updates)
    assert [row["on_parts"] for row in apart.info["merged"]] == list(range(30))
    half = merge(updates[10:])
    assert [row["on_parts"] for row in half.info["merged"]] == list(range(20))
    assert half.preceding == updates[10].preceding
    assert all(len(row["ends"]) == 1 for row in apart.info["merged"])
