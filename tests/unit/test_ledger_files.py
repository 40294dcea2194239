"""The files of a ledger: every altered byte is found, no failed write leaves a trace, nothing outside is touched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emendo.errors import LedgerError, OutputError
from emendo.ledger import EditLedger, LedgerStore, Record
from emendo.ledger.change import loaded
from emendo.ledger.edits import kept_edit
from emendo.ledger.record import MAX_BYTES, parse_record
from emendo.ledger.words import what_happened
from tests.ledger_world import WorldPlanner, add, fact, facts_of, new_ledger


def made(folder: Path) -> EditLedger:
    """A small ledger with an edit, a later one, and one taken out."""
    ledger = new_ledger(folder)
    first = add(ledger, fact(1))
    add(ledger, fact(2))
    ledger.revert(first, WorldPlanner())
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> EditLedger:
    return made(tmp_path / "ledger")


def files_of(ledger: EditLedger) -> list[Path]:
    return sorted(path for path in ledger.store.folder.rglob("*") if path.is_file() and path.name != "lock")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"
    }


# ---- altered files ---------------------------------------------------------------------------------------------


def owner(ledger: EditLedger, path: Path) -> str:
    """Id of the record that `verify` has to name for a file."""
    if path.name == "HEAD":
        return ""
    if path.suffix == ".json":
        return path.stem
    return next(record.id for record in ledger.log() for entry in record.added if entry.file == path.stem)


@pytest.mark.parametrize("flips", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_altered_byte_of_every_file_is_found(tmp_path: Path, flips: int) -> None:
    """One bit of every byte, or each of its bits: nothing is read as something else, and `verify` names the record."""
    ledger = new_ledger(tmp_path / "ledger")
    add(ledger, fact(1))
    (entry,) = ledger.state()
    init, edit = ledger.log()
    looks: dict[Path, tuple[str, Callable[[], object]]] = {
        ledger.store.head_path: ("", ledger.store.chain),
        ledger.store.record_path(init.id): (init.id, lambda: ledger.store.record(init.id)),
        ledger.store.record_path(edit.id): (edit.id, lambda: ledger.store.record(edit.id)),
        ledger.store.object_path(entry.file): (edit.id, lambda: loaded(ledger.store, [entry])),
    }
    assert sorted(looks) == files_of(ledger)
    for path, (id, look) in looks.items():
        data = path.read_bytes()
        for place in range(len(data)):
            for bit in range(place, place + flips):
                damaged = bytearray(data)
                damaged[place] ^= 1 << bit % 8
                path.write_bytes(damaged)
                with pytest.raises(LedgerError):
                    look()
        assert [problem.id for problem in ledger.verify().problems] == [id]
        path.write_bytes(data)
    assert ledger.verify().ok


def test_head_may_name_another_record_only_by_its_number_too(ledger: EditLedger) -> None:
    """HEAD has no hash over it: what it says is held against the record that it names."""
    chain = ledger.log()
    head = json.loads(ledger.store.head_path.read_bytes())
    for change in ({"record": chain[1].id}, {"number": 2}, {"number": 0}, {"more": 1}):
        ledger.store.head_path.write_text(json.dumps({**head, **change}) + "\n")
        with pytest.raises(LedgerError):
            ledger.log()
        assert not ledger.verify().ok
    ledger.store.head_path.write_text(json.dumps(head, indent=1))
    with pytest.raises(LedgerError, match=r"HEAD.*is damaged"):
        ledger.log()


def test_verify_names_everything_that_is_missing_or_cut(ledger: EditLedger) -> None:
    objects = [path for path in files_of(ledger) if path.suffix == ".safetensors"]
    assert len(objects) == 3
    ids = [owner(ledger, path) for path in objects]
    objects[0].unlink()
    objects[1].write_bytes(objects[1].read_bytes()[:-7])
    objects[2].write_bytes(objects[2].read_bytes() + b"0")
    problems = {problem.id: problem.what for problem in ledger.verify().problems}
    assert set(problems) == set(ids)
    assert "is missing" in problems[ids[0]]
    assert "is truncated" in problems[ids[1]]
    assert "was altered" in problems[ids[2]]
    assert all("put that file back" in what for what in problems.values())


def test_verify_looks_again_where_another_process_wrote_meanwhile(
    ledger: EditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two operations between reading HEAD and listing the folder look like a HEAD that was put back."""
    leftovers, looks = LedgerStore.leftovers, []

    def slow(store: LedgerStore, chain: list[Record]) -> list[Path]:
        looks.append(len(chain))
        if len(looks) == 1:
            monkeypatch.setattr(LedgerStore, "leftovers", leftovers)
            add(ledger, fact(8))
            add(ledger, fact(9))
            monkeypatch.setattr(LedgerStore, "leftovers", slow)
        return leftovers(store, chain)

    monkeypatch.setattr(LedgerStore, "leftovers", slow)
    assert ledger.verify().ok
    assert looks == [4, 6]


def test_verify_goes_on_past_a_damaged_record(ledger: EditLedger) -> None:
    chain = ledger.log()
    ledger.store.record_path(chain[2].id).write_text("{}")
    ledger.store.record_path(chain[1].id).unlink()
    ledger.store.record_path(chain[0].id).write_text("{}")
    found = ledger.verify()
    assert [problem.id for problem in found.problems] == [chain[2].id, chain[0].id], "a missing one cannot be known of"
    assert found.records == 1
    with pytest.raises(LedgerError, match=chain[2].id):
        add(ledger, fact(5))


def test_head_that_was_put_back_is_not_taken_for_a_killed_operation(ledger: EditLedger) -> None:
    old = ledger.store.head_path.read_bytes()
    add(ledger, fact(3))
    add(ledger, fact(4))
    new = ledger.store.head_path.read_bytes()
    ledger.store.head_path.write_bytes(old)
    before = contents(ledger.store.folder)
    with pytest.raises(LedgerError, match="was put back: 2 newer"):
        add(ledger, fact(5))
    assert "was put back" in ledger.verify().problems[0].what
    assert contents(ledger.store.folder) == before, "the newer records are still there"
    ledger.store.head_path.write_bytes(new)
    assert facts_of(ledger) == ["Tower 2", "Tower 3", "Tower 4"]


BOMBS = [
    b"",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"format":' + b"9" * 10_000 + b"}",
    b'{"a": NaN}',
    b'{"a": 1, "a": 2}',
    b"\xff\xfe",
    b'{"format": "emendo.ledger", "version": 2}',
    b'{"format": "emendo.ledger", "version": 1, "record": "../../../../etc/passwd", "number": 0}',
    b'{"format": "emendo.ledger", "version": true, "record": 1, "number": -1}',
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_junk_is_refused_in_every_place(ledger: EditLedger, bomb: bytes) -> None:
    ledger.store.head_path.write_bytes(bomb)
    with pytest.raises(LedgerError):
        ledger.log()
    assert not ledger.verify().ok
    with pytest.raises(LedgerError):
        parse_record(bomb, hashlib.sha256(bomb).hexdigest(), Path("record"))


def test_sizes_are_looked_at_before_anything_is_read(ledger: EditLedger) -> None:
    path = ledger.store.record_path(ledger.log()[1].id)
    with path.open("r+b") as stream:
        stream.truncate(MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(LedgerError, match=f"{MAX_BYTES + 1} bytes, expected at most"):
        ledger.log()


@pytest.mark.parametrize("what", ["added", "requests"])
def test_an_edit_of_nothing_is_no_record(what: str, ledger: EditLedger) -> None:
    record = ledger.log()[1]
    row = json.loads(record.data)
    (row if what == "added" else row["details"])[what] = []
    text = (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode()
    with pytest.raises(LedgerError, match="makes an edit of no request, or adds no update"):
        parse_record(text, hashlib.sha256(text).hexdigest(), Path("record"))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_record_of_sound_hash_is_refused_or_read_back_as_it_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fields of any type: an error of ours, or a record that commands can show and that is written the same again."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
    row: dict[str, Any] = {
        "format": "emendo.ledger.record",
        "version": 1,
        "number": 1,
        "parent": "a" * 64,
        "operation": "edit",
        "when": "",
        "who": "",
        "message": "",
        "keep": 0,
        "added": [{"edit": None, "update": "b" * 64, "file": "c" * 64, "size": 1, "dropped": []}],
        "details": {
            "requests": [fact(1).to_dict()],
            "method": {"name": "emmet", "settings": {}},
            "seed": 0,
            "moments": "",
            "environment": {},
        },
    }
    if data.draw(st.booleans()):
        inner = row["details"]
        inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(values)
    name = data.draw(st.sampled_from(sorted(row)))
    row[name] = data.draw(values)
    text = (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(text).hexdigest()
    try:
        record = parse_record(text, digest, Path("record"))
    except LedgerError:
        return
    assert record.data == text
    assert record.id == digest
    assert what_happened(record)
    with contextlib.suppress(LedgerError):
        kept_edit(record, record.now_active[0])


# ---- links and odd files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HEAD", "record", "object"])
def test_links_are_refused_even_to_the_right_bytes(ledger: EditLedger, name: str, tmp_path: Path) -> None:
    entry = ledger.state()[0]
    paths = {
        "HEAD": ledger.store.head_path,
        "record": ledger.store.record_path(ledger.log()[1].id),
        "object": ledger.store.object_path(entry.file),
    }
    path = paths[name]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="is a symbolic link"):
        ledger.updates()
    assert not ledger.verify().ok


@pytest.mark.parametrize("name", ["records", "objects"])
def test_a_linked_folder_is_refused(ledger: EditLedger, name: str, tmp_path: Path) -> None:
    path = ledger.store.folder / name
    shutil.move(path, tmp_path / name)
    path.symlink_to(tmp_path / name)
    with pytest.raises(LedgerError, match="no folder of the ledger's own"):
        add(ledger, fact(9))


def test_a_link_in_place_of_the_lock_writes_nothing_elsewhere(ledger: EditLedger, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (ledger.store.folder / "lock").unlink()
    (ledger.store.folder / "lock").symlink_to(victim)
    with pytest.raises(OutputError, match="lock"):
        add(ledger, fact(9))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["HEAD", "record"])
def test_a_pipe_does_not_block(ledger: EditLedger, name: str) -> None:
    path = ledger.store.head_path if name == "HEAD" else ledger.store.record_path(ledger.log()[1].id)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(LedgerError, match="no ordinary file"):
        ledger.log()
    assert "no ordinary file" in ledger.verify().problems[0].what


@pytest.mark.parametrize("id", ["", "../x", "a" * 63, "A" * 64, "a" * 64 + "\n", "/" + "a" * 63, "a" * 65])
def test_only_whole_hashes_become_paths(ledger: EditLedger, id: str) -> None:
    for call in (ledger.store.record_path, ledger.store.object_path, ledger.store.record):
        with pytest.raises(LedgerError, match="no id of a ledger"):
            call(id)


def test_files_of_others_are_not_swept(ledger: EditLedger) -> None:
    other = [ledger.store.folder / "README", ledger.store.objects / "notes.txt", ledger.store.records / "x.json"]
    for path in other:
        path.write_text("mine")
    draft = ledger.store.objects / ".tmp-0123456789abcdef"
    draft.write_text("half an upd")
    orphan = ledger.store.object_path("e" * 64)
    orphan.write_text("whole, and nothing refers to it")
    assert ledger.verify().leftovers == 2
    add(ledger, fact(9))
    assert [path.exists() for path in (*other, draft, orphan)] == [True, True, True, False, False]


# ---- writes that fail ------------------------------------------------------------------------------------------

FAILING = ("open", "write", "fsync", "replace")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["disk full", "read-only"])
@pytest.mark.parametrize("name", FAILING)
def test_a_write_that_fails_leaves_the_ledger_as_it_was(
    ledger: EditLedger, name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such call of an edit fails in turn, until the edit gets through."""
    call = getattr(os, name)
    before, chain = contents(ledger.store.folder), ledger.log()
    failures = 0
    for step in range(1, 100):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, _fails_at(step, call, code, reading=name == "open"))
            try:
                add(ledger, fact(7))
            except OutputError as error:
                failures += 1
                message = str(error)
            else:
                break
        chain_now = ledger.log()
        if len(chain_now) > len(chain):  # the last fsync of all: after the rename that makes it happen
            assert name == "fsync"
            assert "is in the ledger, but the disk did not confirm it" in message
            break
        assert "the ledger is as it was" in message or "--out" in message
        assert chain_now == chain
        assert contents(ledger.store.folder).items() >= before.items()
    assert failures >= 2
    assert facts_of(ledger) == ["Tower 2", "Tower 7"]
    add(ledger, fact(8))
    assert ledger.verify().leftovers == 0
    assert ledger.verify().ok


def _fails_at(step: int, call: Callable[..., Any], code: int, *, reading: bool) -> Callable[..., Any]:
    """The call, failing from that step on; opening files for reading never fails."""
    left = [step]

    def failing(*arguments: Any, **named: Any) -> Any:
        if reading and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
            return call(*arguments, **named)
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(code, os.strerror(code))
        return call(*arguments, **named)

    return failing


def test_looking_needs_no_right_to_write(ledger: EditLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    call = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return call(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    assert ledger.verify().ok
    assert len(ledger.updates()) == 1
    assert facts_of(EditLedger(ledger.store.folder)) == ["Tower 2"]
    with pytest.raises(OutputError, match="Read-only file system"):
        ledger.checkout("base")


# ---- what reaches the disk, and when ---------------------------------------------------------------------------


def test_everything_is_on_the_disk_before_the_step_that_makes_it_happen(
    ledger: EditLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was synchronised: bytes by fsync of the file, names by fsync of the folder."""
    synced: set[str] = set()
    names: dict[str, bool] = {}  # whether a new name is on the disk
    moments: list[dict[str, bool]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        synced.add(path)
        for name in names:
            names[name] |= str(Path(name).parent) == path
        fsync(handle)

    def noted_replace(source: Any, target: Any) -> None:
        assert str(source) in synced or str(source).rpartition("-")[0] in synced, "bytes first"
        if Path(target).name == "HEAD":
            moments.append(dict(names))
        synced.add(str(target))
        names[str(target)] = False
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    id = add(ledger, fact(5))
    (at_commit,) = moments
    entry = ledger.state()[-1]
    for path in (ledger.store.record_path(id), ledger.store.object_path(entry.file)):
        assert at_commit[str(path)], f"{path.name} had its name on the disk when HEAD was replaced"
    assert names[str(ledger.store.head_path)], "and the operation returns when HEAD has"
