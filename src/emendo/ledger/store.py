"""The folder of a ledger: HEAD, records and objects, and the one step by which an operation happens.

::

    FOLDER/
        HEAD                          which record is the newest: the only file that is ever replaced
        records/<sha256>.json         one operation each, named by the hash of its bytes
        objects/<sha256>.safetensors  update files, named by the hash of their bytes
        lock                          held by the one process that writes

An operation first writes its objects, then its record, and then replaces HEAD: it has happened when that rename has,
and before it nothing refers to what was written. This module needs no torch, so that looking at a ledger is quick.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from emendo.arguments import NotNegative, checked
from emendo.errors import LedgerError, OutputError
from emendo.io.printable import quoted
from emendo.ledger.files import (
    RESTORE,
    check_file,
    draft_of,
    file_digest,
    is_draft,
    move_durably,
    parse_json,
    read_limited,
    sync_folder,
    write_durably,
    writing,
)
from emendo.ledger.lock import writer_lock
from emendo.ledger.record import MAX_BYTES, Active, Record, check_version, is_sha256, parse_record

_HEAD_FORMAT, _HEAD_VERSION, _HEAD_BYTES = "emendo.ledger", 1, 4096
_SUFFIX = ".safetensors"


class LedgerStore:
    """Reads and writes the folder of a ledger.

    Args:
        folder: The folder; it may be a link, its parts may not.
    """

    @checked
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.head_path = self.folder / "HEAD"
        self.records = self.folder / "records"
        self.objects = self.folder / "objects"
        self.updates: WeakValueDictionary[str, Any] = WeakValueDictionary()
        """Update files that were read and compared with their digest, by identity, while anybody has them in memory."""
        self.last_tried: Record | None = None
        """The last record that was to be committed here, whether it was or not."""
        self._read: dict[str, _Read] = {}

    # ---- reading -----------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a ledger was ever completed here."""
        return self.head_path.is_symlink() or self.head_path.exists()

    def head(self) -> tuple[str, int]:
        """Id and number of the newest record.

        Raises:
            LedgerError: There is no ledger here, or HEAD is damaged.
        """
        if not self.exists:
            raise LedgerError(
                f"there is no ledger in {str(self.folder)!r}; make one "
                f"(emendo ledger init {quoted(self.folder)} --model MODEL) or name another folder (--ledger FOLDER)"
            )
        for folder in (self.records, self.objects):
            if folder.is_symlink() or not folder.is_dir():
                raise LedgerError(f"{str(folder)!r} is no folder of the ledger's own; {RESTORE}")
        data = read_limited(self.head_path, _HEAD_BYTES, "the ledger's")
        row = parse_json(data, self.head_path, "the ledger's")
        check_version(row, _HEAD_FORMAT, _HEAD_VERSION, f"the ledger's {str(self.head_path)!r}")
        id, number = row.get("record"), row.get("number")
        if not is_sha256(id) or type(number) is not int or data != head_line(str(id), number):
            raise LedgerError(f"the ledger's {str(self.head_path)!r} is damaged; {RESTORE}")
        return str(id), number

    @checked
    def record(self, id: str) -> Record:
        """One record by its whole id, from its file.

        Raises:
            LedgerError: Missing, altered, or no record.
        """
        path = self.record_path(id)
        return parse_record(read_limited(path, MAX_BYTES, "record"), id, path)

    def _recalled(self, id: str) -> Record:
        """One record, from memory where its file is the one that was read."""
        path, begin = f"{self.records}{os.sep}{_checked(id)}.json", time.time_ns()
        file = _file(path)
        known = self._read.get(id)
        # Written in the same tick of the clock as it was read, a file could be altered and keep its time: read again.
        if known is None or known.file != file or not known.settled:
            known = self._read[id] = _Read(self.record(id), file, begin)
        return known.record

    def chain(self) -> list[Record]:
        """All records from `init` on, each checked against the hash in the next one, the newest against HEAD.

        What this object has read before is read again where the file is another one, or has another size or time.

        Raises:
            LedgerError: A file is missing or altered; names it.
        """
        id, number = self.head()
        chain: list[Record] = []
        at: str | None = id
        while at is not None:
            record = self._recalled(at)
            if record.number != number:
                raise LedgerError(
                    f"record {str(self.record_path(at))!r} is number {record.number}, expected {number}; {RESTORE}"
                )
            chain.append(record)
            at, number = record.parent, number - 1
        chain.reverse()
        return chain

    @checked
    def holds(self, record: Record) -> bool:
        """Whether a record is in the chain."""
        at: str | None = self.head()[0] if self.exists else None
        while at is not None and at != record.id:
            newer = self._recalled(at)
            at = newer.parent if newer.number > record.number else None
        return at is not None

    @checked
    def record_path(self, id: str) -> Path:
        """File of a record."""
        return self.records / f"{_checked(id)}.json"

    @checked
    def object_path(self, file: str) -> Path:
        """File of an update by the hash of its bytes."""
        return self.objects / f"{_checked(file)}{_SUFFIX}"

    # ---- writing -----------------------------------------------------------------------------------------

    @checked
    @contextmanager
    def locked(
        self, operation: str, *, timeout: NotNegative, waiting: Callable[[str], None] | None = None
    ) -> Iterator[list[Record]]:
        """Hold the right to write; gives the chain as it is, after sweeping what a killed operation left.

        Raises:
            LedgerBusyError: Another process writes.
            LedgerError: The ledger is damaged: nothing is added to it.
        """
        self.head()  # before a lock file is made in a folder that is no ledger
        with writer_lock(self.folder / "lock", operation, timeout=timeout, waiting=waiting):
            chain = self.chain()
            for path in self.leftovers(chain):
                with writing(path):
                    path.unlink()
            yield chain

    @checked
    def create(self, first: Record, *, timeout: NotNegative) -> None:
        """Make the folder and its first record.

        Raises:
            LedgerError: There is a ledger, or other files.
        """
        self.check_free()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with writer_lock(self.folder / "lock", "init", timeout=timeout):
            self.check_free()
            for folder in (self.records, self.objects):
                with writing(folder):
                    folder.mkdir(exist_ok=True)
            sync_folder(self.folder)
            sync_folder(self.folder.absolute().parent)
            self.append(first)

    def check_free(self) -> None:
        """Refuse a folder with a ledger, or with files that are not one's.

        Raises:
            LedgerError: Says which.
        """
        if self.exists:
            raise LedgerError(
                f"there is a ledger in {str(self.folder)!r} already; use it (--ledger {quoted(self.folder)}) or give a "
                "new folder"
            )
        with writing(self.folder):
            found = list(self.folder.iterdir()) if self.folder.exists() else []
        strange = sorted({path.name for path in found if not is_draft(path)} - _OWN)
        if strange:
            raise LedgerError(
                f"{str(self.folder)!r} holds other files ({', '.join(strange[:3])}); give an empty or a new folder"
            )

    @checked
    def append(self, record: Record) -> Record:
        """Commit a record; its objects are there already. The caller holds the lock.

        Raises:
            LedgerError: The record is too large to be read back, does not follow the newest one, or refers to an update
                file that is not there as it says.
            OutputError: Nothing was committed; or, if it says so, the record is in but may not survive a power cut.
        """
        self.last_tried = record
        data = record.data
        if len(data) > MAX_BYTES:
            raise LedgerError(
                f"this record would have {len(data)} bytes, and at most {MAX_BYTES} are read back; make the "
                "edit in smaller batches"
            )
        self._check_newest(record)
        for entry in record.added:
            check_file(self.object_path(entry.file), entry.file, entry.size, "update file")
        write_durably(self.record_path(record.id), data)
        if self.record(record.id) != record:
            raise LedgerError(f"record {record.id[:12]}… reads back as another one; nothing was added to the ledger")
        try:
            write_durably(self.head_path, head_line(record.id, record.number))
        except OutputError as error:
            if self.exists and self.head()[0] == record.id:
                raise OutputError(
                    f"record {record.id[:12]}… is in the ledger, but the disk did not confirm it ({error.__cause__}): "
                    "it may not survive a power cut. Look at the disk, then `emendo ledger verify`"
                ) from error
            raise
        return record

    def _check_newest(self, record: Record) -> None:
        """Refuse a record that would leave others out: the lock is only as good as the file that it is on."""
        newest = self.head()[0] if self.exists else None
        if newest != record.parent:
            raise LedgerError(
                f"another process wrote {str(self.folder)!r} meanwhile, so its lock file was taken away or the file "
                "system has no locks; nothing was added. Run the command again, and leave the lock in its place"
            )

    @checked
    def put(self, save: Callable[[Path], object]) -> tuple[str, int]:
        """Store an update file. The caller holds the lock.

        Args:
            save: Writes the file, whole and durable, to the path that it is given.

        Returns:
            SHA-256 and size of the file.
        """
        draft = draft_of(self.objects / "object")
        try:
            save(draft)
            file, size = file_digest(draft, "update file")
            move_durably(draft, self.object_path(file))
        finally:
            draft.unlink(missing_ok=True)
        return file, size

    @checked
    def leftovers(self, chain: list[Record]) -> list[Path]:
        """Files that no record of the chain refers to: what killed operations left.

        A killed operation leaves at most one record, which follows the newest one. Several that follow one another mean
        that HEAD was put back to an older record, and are never taken for leftovers.

        Raises:
            LedgerError: HEAD was put back.
        """
        known = {f"{record.id}.json" for record in chain}
        objects = {f"{entry.file}{_SUFFIX}" for record in chain for entry in record.added}
        found = [self.records / name for name in os.listdir(self.records) if name not in known]
        self._refuse_lost([path for path in found if path.suffix == ".json"])
        found += [self.objects / name for name in os.listdir(self.objects) if name not in objects]
        drafts = [path for path in self.folder.iterdir() if is_draft(path)]
        return [path for path in (*drafts, *found) if is_draft(path) or is_sha256(path.stem)]

    def _refuse_lost(self, paths: list[Path]) -> None:
        """Raise where records that are not in the chain follow one another."""
        records = {path.stem: _parent_of(path) for path in paths if is_sha256(path.stem)}
        lost = [id for id, parent in records.items() if parent in records]
        if lost:
            raise LedgerError(
                f"{str(self.head_path)!r} was put back: {len(records)} newer record(s) are in {str(self.records)!r} "
                f"that it does not lead to ({lost[0][:12]}… among them). Put the newest HEAD back from a copy, or move "
                "those files away to go on without them"
            )


class _Read(NamedTuple):
    """A record that was read, and from what file.

    Attributes:
        record: The record.
        file: See `_file`.
        begin: Time before it was read, in nanoseconds.
    """

    record: Record
    file: tuple[int, int, int, int] | None
    begin: int

    @property
    def settled(self) -> bool:
        """Whether its file was old enough when it was read for any later change to show in its time."""
        return self.file is not None and self.begin - self.file[-1] > _TICK


_TICK = 50_000_000
"""Nanoseconds: longer than the steps of any file system's clock but FAT's."""


def _file(path: str) -> tuple[int, int, int, int] | None:
    """Which file has that name, its size, and when its bytes and it were last changed; None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


_OWN = {"lock", "HEAD", "records", "objects"}
"""What may be in a folder where `init` was killed, or where there is a ledger."""


def active_after(chain: list[Record], number: int | None = None) -> tuple[Active, ...]:
    """The updates that are active after a record.

    Args:
        chain: Records from `init` on.
        number: The record; None: the newest.
    """
    state: list[Active] = []
    for record in chain[: None if number is None else number + 1]:
        advance(state, record)
    return tuple(state)


def advance(state: list[Active], record: Record) -> None:
    """Bring a state, in place, to the one after the next record; costs what that changes.

    Raises:
        LedgerError: The record does not follow it.
    """
    if record.keep > len(state):
        raise LedgerError(f"record {record.id[:12]}… keeps {record.keep} updates of {len(state)}; {RESTORE}")
    state[record.keep :] = record.now_active


def head_line(record: str, number: int) -> bytes:
    """The bytes of HEAD: one way to write it, so that no altered one is read as another."""
    row = {"format": _HEAD_FORMAT, "version": _HEAD_VERSION, "record": record, "number": number}
    return (json.dumps(row) + "\n").encode()


def _checked(id: str) -> str:
    if not is_sha256(id):
        raise LedgerError(f"{id[:80]!r} is no id of a ledger; expected 64 hexadecimal digits")
    return id


def _parent_of(path: Path) -> str | None:
    """What an unreachable record follows; None where it cannot be read."""
    try:
        return parse_record(read_limited(path, MAX_BYTES, "record"), path.stem, path).parent
    except LedgerError:
        return None
