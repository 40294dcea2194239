"""The edits behind a state: what each record keeps of one, and what has to be planned again when one of them goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emendo.arguments import checked
from emendo.errors import LedgerError
from emendo.ledger.files import RESTORE
from emendo.ledger.record import MAKES_EDIT, Active, Record
from emendo.ledger.store import active_after, advance
from emendo.requests import EditRequest


@dataclass(frozen=True)
class StoredEdit:
    """An edit as the ledger keeps it: all that planning it again needs.

    Attributes:
        id: Id of the record that made it.
        requests: Its requests that are still in it, by their position in the record.
        method: Name, source and every value of the method, as `ResolvedMethod.to_dict` gives them.
        seed: Of the session that planned it.
        moments: Fingerprint of the second moments; empty where the method has none.
        environment: What else can change a bit of the result: versions, device, threads.
        dropped: Positions of the requests that are no longer in it.
    """

    id: str
    requests: Mapping[int, EditRequest]
    method: Mapping[str, Any]
    seed: int
    moments: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()

    def without(self, facts: Sequence[str]) -> StoredEdit | None:
        """The edit without its requests about some facts; None where nothing is left."""
        gone = {position for position, request in self.requests.items() if request.fact in facts}
        left = {position: request for position, request in self.requests.items() if position not in gone}
        if not left:
            return None
        dropped = tuple(sorted({*self.dropped, *gone}))
        return StoredEdit(self.id, left, self.method, self.seed, self.moments, self.environment, dropped)


class History:
    """The chain of a ledger, asked about edits.

    Args:
        chain: Records from `init` on.
        earlier: Of the same ledger, what it worked out already is not worked out again.
    """

    _edits: dict[tuple[str | None, tuple[int, ...]], StoredEdit]

    @checked
    def __init__(self, chain: Sequence[Record], earlier: History | None = None) -> None:
        self.chain = list(chain)
        self._by_id = {record.id: record for record in self.chain}
        self._folded_from: dict[str, tuple[Active, ...]] = {}
        """By compaction, the state that it folded: no longer in all than what records add."""
        self._edits = earlier._edits if earlier is not None else {}
        state: list[Active] = []
        for record in self.chain:
            if record.operation == "compact":
                self._folded_from[record.id] = tuple(state)
            advance(state, record)
        self.active = tuple(state)

    @checked
    def record(self, prefix: str) -> Record:
        """The record whose id begins so.

        Raises:
            LedgerError: None does, or several do.
        """
        found = [record for record in self.chain if record.id.startswith(prefix.lower())]
        if len(prefix) < _SHORTEST or not set(prefix.lower()) <= set("0123456789abcdef") or not found:
            raise LedgerError(
                f"no record {prefix[:80]!r} in this ledger; expected at least {_SHORTEST} hexadecimal digits of an "
                "id that `emendo ledger log` shows"
            )
        if len(found) > 1:
            ids = ", ".join(record.id[: len(prefix) + 4] for record in found[:4])
            raise LedgerError(f"{prefix!r} begins {len(found)} ids ({ids}); give more digits")
        return found[0]

    @property
    def base(self) -> dict[str, str]:
        """Identity of the model that the ledger is for."""
        return dict(self.chain[0].details["base"])

    @checked
    def state(self, prefix: str | None) -> tuple[Active, ...]:
        """The active updates after a record.

        Args:
            prefix: Beginning of its id; None: the newest; `BASE`: none, the unedited model.
        """
        if prefix == BASE:
            return ()
        return self.active if prefix is None else active_after(self.chain, self.record(prefix).number)

    @checked
    def reverted_by(self, record: Record) -> list[str]:
        """Ids of the edits that reverting a record takes out: its own, or all in what it folded.

        Raises:
            LedgerError: It made no edit, or that is no longer active; says what to do.
        """
        active = [edit.id for edit in self.edits()]
        folded = [entry for entry in self.active if entry.edit == record.id and record.id in self._folded_from]
        if folded:
            return [edit.id for edit in self.edits(folded)]
        if record.operation not in MAKES_EDIT:
            raise LedgerError(
                f"record {record.id[:12]}… is a {record.operation}, not an active edit; to go back to the state before "
                f"it: emendo ledger checkout {(record.parent or BASE)[:12]}"
            )
        if record.id not in active:
            raise LedgerError(
                f"edit {record.id[:12]}… is not active; `emendo ledger checkout` shows what is: "
                + (", ".join(id[:12] for id in active) or "nothing")
            )
        return [record.id]

    @checked
    def edits(self, active: Sequence[Active] | None = None) -> list[StoredEdit]:
        """The edits of a state in order, those inside a folded update too.

        Args:
            active: The state; None: the present one.
        """
        return [edit for edit, _ in self._walk(self.active if active is None else active)]

    @checked
    def split(
        self, active: Sequence[Active], touched: Callable[[StoredEdit], bool]
    ) -> tuple[list[Active], list[StoredEdit]]:
        """What stays of a state before the first touched edit, and the edits from there on, the touched ones too.

        A folded update that holds a touched edit is unfolded: it gives way to what it was folded from.
        """
        walk = self._walk(active)
        for edit, kept in walk:
            if touched(edit):
                return kept(), [edit, *(later for later, _ in walk)]
        return list(active), []

    def _walk(self, active: Sequence[Active]) -> Iterator[tuple[StoredEdit, Callable[[], list[Active]]]]:
        """The edits of a state in order, each with what gives the updates before it, of which none holds it.

        By a stack of its own: a ledger may be compacted thousands of times, each fold inside the next.
        """
        levels = [(active, 0)]  # a state, and how many of its updates were begun
        unfolded: set[str] = set()
        while levels:
            state, begun = levels.pop()
            if begun == len(state):
                continue
            entry = state[begun]
            levels.append((state, begun + 1))
            if (id := _id(entry)) not in self._folded_from:
                yield self._kept(entry), lambda: [old for state, begun in levels for old in state[: begun - 1]]
            elif id in unfolded:
                raise LedgerError(f"a state of this ledger holds what {id[:12]}… folded more than once; {RESTORE}")
            else:
                unfolded.add(id)
                levels.append((self._folded_from[id], 0))

    def _kept(self, entry: Active) -> StoredEdit:
        key = entry.edit, entry.dropped
        if key not in self._edits:
            record = self._by_id.get(id := _id(entry))
            if record is None:
                raise LedgerError(f"an update of this ledger is said to be of the edit {id[:12]}…, which is not in it")
            self._edits[key] = kept_edit(record, entry)
        return self._edits[key]


BASE = "base"
"""Names the state of the unedited model."""

_SHORTEST = 4


def kept_edit(record: Record, entry: Active) -> StoredEdit:
    """The edit that a record made, as far as an active update still holds it.

    Raises:
        LedgerError: The record does not say what is needed.
    """
    details = record.details
    try:
        if record.operation not in MAKES_EDIT:
            raise ValueError(f"it is a {record.operation}")
        return StoredEdit(
            id=record.id,
            requests={place: request for place, request in enumerate(record.requests) if place not in entry.dropped},
            method=details["method"],
            seed=details["seed"],
            moments=details["moments"],
            environment=details["environment"],
            dropped=entry.dropped,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"record {record.id[:12]}… does not say how to make its edit ({error!r})") from error


def _id(entry: Active) -> str:
    """The edit of an update of a state, where it always is one."""
    assert entry.edit is not None
    return entry.edit
