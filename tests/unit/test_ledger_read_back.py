"""A ledger keeps only what it can read again, and opens where an earlier Emendo kept something else."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emendo.cli.app import run
from emendo.errors import LedgerError
from emendo.ledger import EditLedger, LedgerStore
from emendo.ledger.files import write_durably
from emendo.ledger.lock import user_name
from emendo.ledger.record import Record
from emendo.ledger.store import head_line
from tests.ledger_world import BASE, METHOD, add, fact, facts_of, new_ledger, planned

BYTE = os.fsdecode(b"caf\xe9")
"""What Python makes of an argument in Latin-1."""


@pytest.fixture
def ledger(tmp_path: Path) -> EditLedger:
    ledger = new_ledger(tmp_path / "ledger")
    add(ledger, fact(1))
    return ledger


def measured(metrics: Any) -> Callable[[EditLedger], object]:
    return lambda ledger: ledger.commit_edit(planned([fact(2)], ledger.updates()), metrics=metrics)


def told(**info: Any) -> Callable[[EditLedger], object]:
    def commit(ledger: EditLedger) -> object:
        update = planned([fact(2)], ledger.updates())
        update.info.update(info)
        return ledger.commit_edit(update)

    return commit


DEEP: list[Any] = []
for _ in range(120):
    DEEP = [DEEP]

UNREADABLE: dict[str, tuple[Callable[[EditLedger], object], str]] = {
    "message": (lambda ledger: ledger.checkout("base", message=BYTE), r"the message .*not UTF-8: 'caf\\xe9'"),
    "message, half of a pair": (lambda ledger: ledger.compact(message="\ud83d"), r"not UTF-8: '\\ud83d'"),
    "message of bytes": (lambda ledger: ledger.checkout("base", message=b"why"), "is a bytes, expected a text"),  # type: ignore[arg-type]
    "who": (lambda ledger: EditLedger(ledger.store.folder, who=BYTE), r"signs the record \(--who\).*not UTF-8"),
    "who is a number": (lambda ledger: EditLedger(ledger.store.folder, who=3), "is a int"),  # type: ignore[arg-type]
    "metrics, deep inside": (measured({"notes": ["fine", {"a": BYTE}]}), r"'details.metrics.notes\[1\].a' holds bytes"),
    "metrics, a key": (measured({BYTE: 1}), "not UTF-8"),
    "metrics, equal keys": (measured({1: 0.5, "1": 0.6}), "'details.metrics' has the field '1' twice"),
    "metrics, a key that is none": (measured({(1, 2): 0.5}), "has a tuple for a key"),
    "metrics, a set": (measured({"layers": {1, 2}}), "'details.metrics.layers' is a set"),
    "metrics, bytes": (measured({"raw": b"1"}), "'details.metrics.raw' is a bytes"),
    "metrics, an array": (measured({"scores": np.zeros(3)}), "is a ndarray"),
    "metrics, too large": (measured({"count": 10**5000}), "is an integer of 16,610 bits"),
    "metrics, too deep": (measured({"tree": DEEP}), "nested more than 100 deep"),
    "metrics, no object": (measured([1, 2]), "does not say how it was planned"),
    "method without a name": (told(method={**METHOD, "name": 3}), "its method has no name"),
    "requests of other fields": (told(requests=[{"prompt": "{} is", "subject": "x", "goal": "y"}]), "does not say how"),
    "requests of no slot": (told(requests=[{"prompt": "is", "subject": "x", "target": "y"}]), "does not say how"),
    "environment": (told(versions={"emendo": BYTE}), r"not UTF-8: 'caf\\xe9'|cannot be stored"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_could_not_be_read_again_is_refused_in_words(what: str, ledger: EditLedger) -> None:
    operation, message = UNREADABLE[what]
    before = ledger.store.head_path.read_bytes(), ledger.log()
    with pytest.raises(ValueError, match=message) as caught:
        operation(ledger)
    assert not isinstance(caught.value, UnicodeError)
    assert (ledger.store.head_path.read_bytes(), ledger.log()) == before
    assert ledger.verify().ok
    add(ledger, fact(3))
    assert facts_of(EditLedger(ledger.store.folder)) == ["Tower 1", "Tower 3"]


def test_numbers_of_other_libraries_are_kept_as_the_numbers_that_they_are(ledger: EditLedger) -> None:
    metrics = {
        "np": [np.float32(0.5), np.float64(0.1), np.int64(3), np.bool_(True)],
        "torch": torch.tensor(0.25),
        "pair": (1, 2),
        7: -0.0,
        "not finite": [math.nan, -math.inf, np.float32("inf")],
        "acting": "\x1b[2J \u202e \x00 \U0001f600",
    }
    kept = ledger.commit_edit(planned([fact(2)], ledger.updates()), metrics=metrics)
    expected = {
        "np": [0.5, 0.1, 3, True],
        "torch": 0.25,
        "pair": [1, 2],
        "7": 0.0,
        "not finite": [None, None, None],
        "acting": metrics["acting"],
    }
    assert kept.details["metrics"] == expected, "what is given back is what is kept"
    assert ledger.log()[-1] == kept
    assert type(kept.details["metrics"]["np"][2]) is int


@pytest.mark.parametrize("lacking", ["name", "model_type", "dtype", "weights_sha256", "tokenizer_sha256"])
def test_no_ledger_is_made_for_half_an_identity(lacking: str, tmp_path: Path) -> None:
    base = {name: value for name, value in BASE.items() if name != lacking}
    with pytest.raises(LedgerError, match=f"{lacking}|its model is a NoneType"):
        EditLedger.create(tmp_path / "facts", base)
    assert not (tmp_path / "facts").exists()


def test_a_user_name_that_is_no_utf8_signs_with_its_bytes_written_out(
    ledger: EditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody chooses that name for a command, so it is no reason to refuse one."""
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, os.fsdecode(b"J\xfcrgen"))
    assert user_name() == r"J\xfcrgen"
    assert run(["ledger", "checkout", "base", "--ledger", str(ledger.store.folder)]) == 0
    assert EditLedger(ledger.store.folder).log()[-1].who == r"J\xfcrgen"


def test_the_command_refuses_such_text_before_any_work(
    ledger: EditLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(ledger.store.folder)
    edit = ["edit", "--ledger", folder, "--model", "nowhere", "--prompt", "{} is in", "--subject", "x", "--target", "y"]
    id = ledger.log()[-1].id[:12]
    for arguments in (
        ["ledger", "init", str(tmp_path / "new"), "--model", BYTE],
        ["ledger", "init", str(tmp_path / "new"), "--model", "nowhere", "-m", BYTE],
        [*edit, "-m", BYTE],
        [*edit, "--who", BYTE],
        ["ledger", "revert", id, "--ledger", folder, "-m", BYTE],
        ["ledger", "checkout", "base", "--ledger", folder, "--who", BYTE],
        ["ledger", "compact", "--ledger", folder, "-m", BYTE],
    ):
        assert run(arguments) == 2
        assert r"not UTF-8: 'caf\xe9'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert len(ledger.log()) == 2


def test_a_file_that_reads_back_as_something_else_gets_no_name(
    ledger: EditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes other bytes than it is given: neither a record nor HEAD is replaced by them."""
    before, write = ledger.log(), os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data).replace(b"checkout", b"checkouT")))
    with pytest.raises(ValueError, match="what was written is not what is read"):
        ledger.checkout("base")
    monkeypatch.undo()
    assert ledger.log() == before


def test_a_record_is_not_named_by_head_without_its_update_file(ledger: EditLedger) -> None:
    first, path = ledger.log()[1], ledger.store.object_path(ledger.state()[0].file)
    ledger.checkout("base")
    sound = path.read_bytes()
    for damaged in (None, sound[:-1], sound[:-1] + b"?"):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=path.name):
            ledger.checkout(first.id)
    path.write_bytes(sound)
    assert len(ledger.log()) == 3
    ledger.checkout(first.id)
    assert facts_of(ledger) == ["Tower 1"]


# ---- ledgers that an earlier Emendo left so --------------------------------------------------------------------


def force(store: LedgerStore, record: Record, change: Callable[[bytes], bytes]) -> str:
    """Put a record under HEAD whose bytes have the hash in its name, whatever they are."""
    data = change(record.data)
    id = hashlib.sha256(data).hexdigest()
    write_durably(store.record_path(id), data)
    write_durably(store.head_path, head_line(id, record.number))
    return id


def follow_up(ledger: EditLedger, message: str = "") -> Record:
    last = ledger.log()[-1]
    return Record(last.number + 1, last.id, "checkout", "2026-01-01", "x", message, details={"target": None})


def test_a_ledger_with_bytes_that_are_no_utf8_opens(ledger: EditLedger, capsys: pytest.CaptureFixture[str]) -> None:
    id = force(ledger.store, follow_up(ledger, "caf?"), lambda data: data.replace(b"caf?", b"caf\xe9"))
    assert ledger.log()[-1].id == id
    assert ledger.verify().ok
    folder = str(ledger.store.folder)
    for verb in (["log"], ["show", id], ["log", "--json"], ["checkout", ledger.log()[1].id]):
        arguments = ["ledger", *verb]
        assert run([*arguments, "--ledger", folder]) == 0
        capsys.readouterr().out.encode("utf-8")
    assert facts_of(ledger) == ["Tower 1"]


def test_verify_says_how_to_go_on_without_what_cannot_be_read(
    ledger: EditLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(ledger, fact(2))
    good = ledger.store.head_path.read_bytes()
    bad = force(ledger.store, follow_up(ledger), lambda data: data.replace(b'"who"', b'"who": "", "who"'))
    with pytest.raises(LedgerError, match="given more than once"):
        ledger.log()
    found = ledger.verify()
    assert [problem.id for problem in found.problems] == [bad]
    assert "number 2 (edit of" in found.way_out
    assert f"{bad}.json" in found.way_out
    assert run(["ledger", "verify", "--ledger", str(ledger.store.folder)]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert line.encode() + b"\n" == good, "one line, to be copied"
    ledger.store.head_path.write_text(line + "\n")
    ledger.store.record_path(bad).rename(tmp_path / "bad.json")
    assert ledger.verify().ok
    add(ledger, fact(3))
    assert facts_of(ledger) == ["Tower 1", "Tower 2", "Tower 3"]


def test_verify_finds_the_way_out_from_the_middle_of_a_chain_and_without_head(ledger: EditLedger) -> None:
    for number in (2, 3, 4):
        add(ledger, fact(number))
    chain, head = ledger.log(), ledger.store.head_path.read_bytes()
    ledger.store.head_path.write_text("junk")
    assert ledger.verify().way_out.encode().endswith(head.strip())
    ledger.store.head_path.write_bytes(head)
    assert ledger.verify().way_out == "", "nothing to go out of"
    ledger.store.record_path(chain[2].id).write_text("{}")
    way_out = ledger.verify().way_out
    words, line = way_out.splitlines()
    assert json.loads(line)["record"] == chain[1].id
    assert all(f"{record.id}.json" in words for record in chain[2:])
    ledger.store.record_path(chain[0].id).unlink()
    assert ledger.verify().way_out == ""


# ---- interrupted commands ----------------------------------------------------------------------------------------


def test_an_interrupted_command_says_whether_its_record_is_in(
    ledger: EditLedger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = LedgerStore.append

    def before(store: LedgerStore, record: Record) -> Record:
        raise KeyboardInterrupt

    def after(store: LedgerStore, record: Record) -> Record:
        append(store, record)
        raise KeyboardInterrupt

    command = ["ledger", "checkout", "base", "--ledger", str(ledger.store.folder)]
    monkeypatch.setattr(LedgerStore, "append", before)
    assert run(command) == 130
    assert capsys.readouterr().err.strip() == "emendo: interrupted; the ledger is as it was"
    assert len(ledger.log()) == 2
    monkeypatch.setattr(LedgerStore, "append", after)
    assert run(command) == 130
    newest = ledger.log()[-1]
    assert newest.operation == "checkout"
    assert f"interrupted, but the ledger has the record {newest.id[:12]} (number 2, checkout" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt) as caught:
        ledger.checkout("base")
    assert ledger.log()[-1].id[:12] in caught.value.__notes__[0]
