"""New requests against the facts that a ledger holds already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emendo.errors import ConflictError, RequestError
from emendo.io.printable import quoted
from emendo.ledger.edits import StoredEdit
from emendo.requests import EditRequest


def replaced_facts(
    edits: Sequence[StoredEdit], requests: Sequence[EditRequest], *, replace: bool, folder: Path
) -> list[str]:
    """The facts of `requests` (`EditRequest.fact`) that are active with another target and are to give way.

    Args:
        edits: The active edits.
        requests: What is to be written.
        replace: Whether other targets give way.
        folder: The ledger, for the commands in messages.

    Raises:
        ConflictError: A fact is active with another target, and `replace` is not set.
        RequestError: A fact is already there, with this target.
    """
    standing = {request.fact: (edit.id, request) for edit in edits for request in edit.requests.values()}
    known = [(standing[request.fact], request) for request in requests if request.fact in standing]
    there = [(id, old) for (id, old), request in known if old.answer == request.answer]
    other = [(id, old, request) for (id, old), request in known if old.answer != request.answer]
    if there:
        raise RequestError(
            f"{len(there)} fact(s) are already in this ledger with the same target; leave them out, nothing has to be "
            "done for them:",
            [_told(id, old) for id, old in there],
        )
    if other and not replace:
        raise ConflictError(
            f"{len(other)} fact(s) are already in this ledger with another target; replace them in one step "
            "(--replace), or take the old edit out first "
            f"(emendo ledger revert {other[0][0][:12]} --ledger {quoted(folder)}):",
            [f"{_told(id, old)}, and now → {request.target!r}" for id, old, request in other],
        )
    return [request.fact for _, _, request in other]


def _told(id: str, request: EditRequest) -> str:
    return f"{request.text!r} → {request.target!r} by {id[:12]}"
