"""The edits behind a state: what each record keeps of one, and what has to be planned again when one of them goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emendo.errors import LedgerError
from emendo.ledger.record import MAKES_EDIT, Active, Record
from emendo.ledger.store import active_after
from emendo.requests import EditRequest


@dataclass(frozen=True)
class KeptEdit:
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

    def without(self, facts: Sequence[str]) -> KeptEdit | None:
        """The edit without its requests about some facts; None where nothing is left."""
        gone = {position for position, request in self.requests.items() if request.fact in facts}
        left = {position: request for position, request in self.requests.items() if position not in gone}
        if not left:
            return None
        dropped = tuple(sorted({*self.dropped, *gone}))
        return KeptEdit(self.id, left, self.method, self.seed, self.moments, self.environment, dropped)


class History:
    """The chain of a ledger, asked about edits.

    Args:
        chain: Records from `init` on.
    """

    def __init__(self, chain: Sequence[Record]) -> None:
        self.chain = list(chain)
        self.active = active_after(self.chain)
        self._by_id = {record.id: record for record in self.chain}

    def record(self, prefix: str) -> Record:
        """The record whose id begins so.

        Raises:
            LedgerError: None does, or several do.
        """
        found = [record for record in self.chain if record.id.startswith(prefix.lower())]
        if len(prefix) < _SHORTEST or not set(prefix.lower()) <= set("0123456789abcdef") or not found:
            raise LedgerError(
                f"no record {prefix[:80]!r} in this ledger; expected at least {_SHORTEST} hexadecimal digits of an "
                "id that `emendo log` shows"
            )
        if len(found) > 1:
            ids = ", ".join(record.id[: len(prefix) + 4] for record in found[:4])
            raise LedgerError(f"{prefix!r} begins {len(found)} ids ({ids}); give more digits")
        return found[0]

    @property
    def base(self) -> dict[str, str]:
        """Identity of the model that the ledger is for."""
        return dict(self.chain[0].details["base"])

    def state(self, prefix: str | None) -> tuple[Active, ...]:
        """The active updates after a record.

        Args:
            prefix: Beginning of its id; None: the newest; `BASE`: none, the unedited model.
        """
        if prefix == BASE:
            return ()
        return self.active if prefix is None else active_after(self.chain, self.record(prefix).number)

    def reverted_by(self, record: Record) -> list[str]:
        """Ids of the edits that reverting a record takes out: its own, or all in what it folded.

        Raises:
            LedgerError: It made no edit, or that is no longer active; says what to do.
        """
        active = [edit.id for edit in self.edits()]
        folded = [entry for entry in self.active if entry.edit == record.id and self._folded(entry)]
        if folded:
            return [edit.id for edit in self.edits(folded)]
        if record.operation not in MAKES_EDIT:
            raise LedgerError(
                f"record {record.id[:12]}… is a {record.operation}, not an active edit; to go back to the state before "
                f"it: emendo checkout {(record.parent or BASE)[:12]}"
            )
        if record.id not in active:
            raise LedgerError(
                f"edit {record.id[:12]}… is not active; `emendo checkout` shows what is: "
                + (", ".join(id[:12] for id in active) or "nothing")
            )
        return [record.id]

    def edits(self, active: Sequence[Active] | None = None) -> list[KeptEdit]:
        """The edits of a state in order, those inside a folded update too.

        Args:
            active: The state; None: the present one.
        """
        return [edit for entry in (self.active if active is None else active) for edit in self._inside(entry)]

    def split(
        self, active: Sequence[Active], touched: Callable[[KeptEdit], bool]
    ) -> tuple[list[Active], list[KeptEdit]]:
        """What stays of a state before the first touched edit, and the edits from there on, the touched ones too.

        A folded update that holds a touched edit is unfolded: it gives way to what it was folded from.
        """
        for index, entry in enumerate(active):
            inside = self._inside(entry)
            if not any(map(touched, inside)):
                continue
            kept: list[Active] = []
            if self._folded(entry):  # always the first of its state, since folding takes the whole of one
                kept, inside = self.split(self._before(entry), touched)
            return [*active[:index], *kept], [*inside, *self.edits(active[index + 1 :])]
        return list(active), []

    def _inside(self, entry: Active) -> list[KeptEdit]:
        return self.edits(self._before(entry)) if self._folded(entry) else [kept_edit(self._by_id[_id(entry)], entry)]

    def _folded(self, entry: Active) -> bool:
        return self._by_id[_id(entry)].operation == "compact"

    def _before(self, entry: Active) -> tuple[Active, ...]:
        """The state that a folded update was folded from."""
        return active_after(self.chain, self._by_id[_id(entry)].number - 1)


BASE = "base"
"""Names the state of the unedited model."""

_SHORTEST = 4


def kept_edit(record: Record, entry: Active) -> KeptEdit:
    """The edit that a record made, as far as an active update still holds it.

    Raises:
        LedgerError: The record does not say what is needed.
    """
    details = record.details
    try:
        if record.operation not in MAKES_EDIT:
            raise ValueError(f"it is a {record.operation}")
        requests = [EditRequest(**row) for row in details["requests"]]
        return KeptEdit(
            id=record.id,
            requests={place: request for place, request in enumerate(requests) if place not in entry.dropped},
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
