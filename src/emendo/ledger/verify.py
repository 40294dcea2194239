"""Everything in a ledger checked against its hash, and every problem named, not only the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emendo.errors import EmendoError, LedgerError
from emendo.io.environment import changed_since, changes_in_words
from emendo.ledger.edits import History, StoredEdit
from emendo.ledger.record import Active, Record, is_sha256
from emendo.ledger.store import LedgerStore, advance, head_line
from emendo.models.base_model import differences, in_words
from emendo.updates.predecessors import UNEDITED, Predecessors


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
        edits: Active edits, those inside folded updates too.
        environment_changed: Where this process computes otherwise than those that made them: by name, what it was and
            what it is.
        way_out: Where records cannot be followed to the first one: the newest one from which they can, and how to go on
            from there.
    """

    records: int
    objects: int
    nbytes: int
    leftovers: int
    problems: tuple[Problem, ...]
    edits: int = 0
    environment_changed: Mapping[str, list[str]] = field(default_factory=dict)
    way_out: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def replay(self) -> str:
        """Whether planning the active edits again here would give their bits, in one line."""
        if not self.edits:
            return "No edit is active, so there is nothing to plan again"
        if not self.environment_changed:
            return f"Planned again here, the {self.edits} active edit(s) would be the same bit for bit"
        return (
            "Planned again here, active edits may differ in their last bits, and bit for bit is not promised: "
            + changes_in_words(self.environment_changed)
        )

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
    way_out = ""
    if not whole:
        loose, problems_of_others = _loose_records(store, {problem.id for problem in problems})
        problems += problems_of_others
        way_out = _way_out(store, loose)
    entries = {entry.file: (entry, record) for record in reversed(chain) for entry in record.added}
    preceding = _preceding(chain, problems) if whole else {}
    base = chain[0].details.get("base") if whole else None
    for file, (entry, record) in entries.items():
        if (what := _object_problem(store, entry, base, preceding.get(file))) is not None:
            problems.append(Problem(_relative(store, store.object_path(file)), record.id, what))
    leftovers, edits = 0, list[StoredEdit]()
    if whole:
        try:
            leftovers = len(store.leftovers(chain))
            edits = History(chain).edits()
        except EmendoError as error:
            problems.append(Problem("HEAD", "", str(error)))
    size = sum(entry.size for entry, _ in entries.values())
    changed = changed_since(edit.environment for edit in edits)
    return Verification(len(chain), len(entries), size, leftovers, tuple(problems), len(edits), changed, way_out)


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


def _loose_records(store: LedgerStore, told: set[str]) -> tuple[dict[str, Record], list[Problem]]:
    """All records that can be read where the chain is broken, by id; and what is wrong with the others."""
    sound, found = {}, []
    for path in sorted(store.records.glob("*.json")) if store.records.is_dir() else []:
        if is_sha256(path.stem):
            try:
                sound[path.stem] = store.record(path.stem)
            except LedgerError as error:
                if path.stem not in told:
                    found.append(Problem(_relative(store, path), path.stem, str(error)))
    return sound, found


def _way_out(store: LedgerStore, records: Mapping[str, Record]) -> str:
    """How to go on without what cannot be read, where there is no copy; empty where no record leads to the first."""
    whole: dict[str, Record] = {}
    for record in sorted(records.values(), key=lambda record: record.number):
        before = whole.get(record.parent or "")
        if record.number == 0 or (before is not None and before.number == record.number - 1):
            whole[record.id] = record
    if not whole:
        return ""
    last = max(whole.values(), key=lambda record: record.number)
    on_the_way, at = {last.id}, last.parent
    while at is not None:
        on_the_way.add(at)
        at = whole[at].parent
    others = [path.name for path in store.records.glob("*.json") if path.stem not in on_the_way]
    move = f", and move out of {str(store.records)!r}: {', '.join(sorted(others))}" if others else ""
    line = head_line(last.id, last.number).decode().strip()
    return (
        f"The newest record that leads back to the first is number {last.number} ({last.operation} of "
        f"{last.when[:19]}, {last.id[:12]}…). Without a copy of what is damaged, the ledger goes on from there: copy "
        f"the folder, make this line all that {str(store.head_path)!r} holds{move}\n{line}"
    )


def _preceding(chain: Sequence[Record], problems: list[Problem]) -> dict[str, Predecessors]:
    """For every update file, the updates that it was planned on."""
    found: dict[str, Predecessors] = {}
    state: list[Active] = []
    states = [UNEDITED]
    for record in chain:
        try:
            advance(state, record)
        except LedgerError:
            problems.append(Problem(f"records/{record.id}.json", record.id, "it keeps more updates than there were"))
            return found
        del states[record.keep + 1 :]
        for entry in state[record.keep :]:
            found[entry.file] = states[-1]
            states.append(states[-1].then(entry.update))
    return found


def _object_problem(
    store: LedgerStore, entry: Active, base: dict[str, Any] | None, preceding: Predecessors | None
) -> str | None:
    """What is wrong with an update file; None where nothing is."""
    from emendo.ledger.change import loaded

    try:
        (update,) = loaded(store, [entry])
    except EmendoError as error:
        return str(error)
    if preceding is not None and update.preceding != preceding:
        return "its update was planned on other updates than those before it"
    if base is not None and (told := differences(base, update.base)):
        return f"its update is of another model ({in_words(told)})"
    return None


def _relative(store: LedgerStore, path: Path) -> str:
    return str(path.relative_to(store.folder))
