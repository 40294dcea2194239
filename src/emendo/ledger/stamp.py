"""A new record: what follows the newest one, with the time and the name on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from emendo.errors import InputError, LedgerError
from emendo.io.strict_json import check_text
from emendo.ledger.edits import History, kept_edit
from emendo.ledger.record import MAKES_EDIT, Active, Record, as_read_back


def new_record(
    history: History | None,
    operation: str,
    *,
    active: Sequence[Active] = (),
    details: Mapping[str, Any],
    who: str,
    message: str,
) -> Record:
    """The record of an operation, not yet written, as it will be read back.

    Args:
        history: What it follows; None for the first record.
        operation: What was done.
        active: The state after it; what it shares with the state before is not repeated.
        details: What belongs to the operation.
        who: User.
        message: Why.

    Raises:
        LedgerError: It could not be read again.
    """
    before = history.active if history is not None else ()
    keep = 0
    for was, now in zip(before, active, strict=False):
        if was is not now and was != now:
            break
        keep += 1
    parent = history.chain[-1] if history is not None else None
    record = Record(
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
    record = as_read_back(record)
    if operation in MAKES_EDIT:
        kept_edit(record, record.now_active[-1])
    return record


def check_texts(who: object, message: object) -> None:
    """Refuse, before any work is done, what no record can hold.

    Raises:
        LedgerError: Says which of the two it is.
    """
    try:
        check_text(who, "the name that signs the record (--who)")
        check_text(message, "the message (--message)")
    except InputError as error:
        raise LedgerError(str(error)) from error
