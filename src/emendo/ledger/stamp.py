"""A new record: what follows the newest one, with the time and the name on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from emendo.ledger.edits import History
from emendo.ledger.record import Active, Record


def stamped(
    history: History | None,
    operation: str,
    *,
    active: Sequence[Active] = (),
    details: Mapping[str, Any],
    who: str,
    message: str,
) -> Record:
    """The record of an operation, not yet written.

    Args:
        history: What it follows; None for the first record.
        operation: What was done.
        active: The state after it; what it shares with the state before is not repeated.
        details: What belongs to the operation.
        who: User.
        message: Why.
    """
    before = history.active if history is not None else ()
    keep = 0
    while keep < min(len(before), len(active)) and before[keep] == active[keep]:
        keep += 1
    parent = history.chain[-1] if history is not None else None
    return Record(
        number=parent.number + 1 if parent is not None else 0,
        parent=parent.id if parent is not None else None,
        operation=operation,
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        who=who,
        message=message,
        keep=keep,
        added=tuple(active[keep:]),
        details=dict(details),
    )
