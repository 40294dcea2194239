"""Everything in a ledger held against its hash, and every problem named, not only the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emendo.errors import EmendoError, LedgerError
from emendo.ledger.record import Active, Record, is_sha256
from emendo.ledger.store import LedgerStore


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        path: The file.
        id: Id of the record that is damaged, or that needs the damaged file; empty for HEAD.
        what: What is wrong with it.
    """

    path: str
    id: str
    what: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        records: Records that could be read, from the newest back.
        objects: Update files that they refer to.
        nbytes: Bytes of those files as recorded.
        leftovers: Files of killed operations, to be swept by the next one that writes.
        problems: What is wrong.
    """

    records: int
    objects: int
    nbytes: int
    leftovers: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "problems": [asdict(problem) for problem in self.problems], "ok": self.ok}


def verify(store: LedgerStore) -> Verification:
    """Hold HEAD, all records and all update files against their hashes; changes nothing.

    Update files are also opened: each must hold the update that its record names, planned on those before it.

    Raises:
        LedgerError: There is no ledger at all.
    """
    if not store.exists:
        store.head()  # says what is missing
    while True:
        before = _file(store.head_path)
        found = _verified(store)
        if found.ok or _file(store.head_path) == before:
            return found
        # Another process wrote meanwhile, and what looked wrong was only newer.


def _file(path: Path) -> tuple[int, int]:
    """Which file has that name now: a rename brings another one."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns


def _verified(store: LedgerStore) -> Verification:
    problems: list[Problem] = []
    chain = _chain(store, problems)
    whole = bool(chain) and chain[0].number == 0
    if not whole:
        problems += _loose_records(store, {problem.id for problem in problems})
    entries = {entry.file: (entry, record) for record in reversed(chain) for entry in record.added}
    states = _states(chain, problems) if whole else {}
    base = chain[0].details.get("base") if whole else None
    for file, (entry, record) in entries.items():
        if (what := _object_problem(store, entry, base, states.get(file))) is not None:
            problems.append(Problem(_relative(store, store.object_path(file)), record.id, what))
    leftovers = 0
    if whole:
        try:
            leftovers = len(store.leftovers(chain))
        except EmendoError as error:
            problems.append(Problem("HEAD", "", str(error)))
    size = sum(entry.size for entry, _ in entries.values())
    return Verification(len(chain), len(entries), size, leftovers, tuple(problems))


def _chain(store: LedgerStore, problems: list[Problem]) -> list[Record]:
    """The records that can be followed back from HEAD, oldest first."""
    try:
        at, number = store.head()
    except LedgerError as error:
        problems.append(Problem("HEAD", "", str(error)))
        return []
    chain: list[Record] = []
    while True:
        path = store.record_path(at)
        try:
            record = store.record(at)
            if record.number != number:
                raise LedgerError(f"it is number {record.number}, expected {number}")
        except LedgerError as error:
            problems.append(Problem(_relative(store, path), at, str(error)))
            break
        chain.append(record)
        if record.parent is None:
            break
        at, number = record.parent, number - 1
    return chain[::-1]


def _loose_records(store: LedgerStore, told: set[str]) -> list[Problem]:
    """Damaged records among those that the broken chain does not lead to."""
    found = []
    for path in sorted(store.records.glob("*.json")) if store.records.is_dir() else []:
        if is_sha256(path.stem) and path.stem not in told:
            try:
                store.record(path.stem)
            except LedgerError as error:
                found.append(Problem(_relative(store, path), path.stem, str(error)))
    return found


def _states(chain: Sequence[Record], problems: list[Problem]) -> dict[str, list[str]]:
    """For every update file, the identities of the updates that it was planned on."""
    before: dict[str, list[str]] = {}
    state: tuple[Active, ...] = ()
    for record in chain:
        if record.keep > len(state):
            problems.append(Problem(f"records/{record.id}.json", record.id, "it keeps more updates than there were"))
            return before
        state = record.after(state)
        for place in range(record.keep, len(state)):
            before[state[place].file] = [entry.update for entry in state[:place]]
    return before


def _object_problem(
    store: LedgerStore, entry: Active, base: dict[str, Any] | None, before: list[str] | None
) -> str | None:
    """What is wrong with an update file; None where nothing is."""
    from emendo.ledger.change import loaded

    try:
        (update,) = loaded(store, [entry])
    except EmendoError as error:
        return str(error)
    if before is not None and list(update.preceding) != before:
        return "its update was planned on other updates than those before it"
    if base is not None and update.base.get("weights_sha256") != base.get("weights_sha256"):
        return "its update is of another model"
    return None


def _relative(store: LedgerStore, path: Path) -> str:
    return str(path.relative_to(store.folder))
