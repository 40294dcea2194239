"""An edit on its way into a ledger: the lock is held, the session stands where the edit is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emendo.editing.session import EditSession
from emendo.errors import LedgerError
from emendo.ledger.change import State, stored
from emendo.ledger.edits import History
from emendo.ledger.record import Record
from emendo.ledger.replay import SessionPlanner, environment_of, fingerprint
from emendo.ledger.stamp import new_record
from emendo.ledger.store import LedgerStore
from emendo.requests import EditRequest
from emendo.updates.update import ModelUpdate


class PendingEdit:
    """What `EditLedger.editing` gives: plan with the session, then `commit`.

    Attributes:
        record: The committed record; None before.
    """

    def __init__(
        self,
        store: LedgerStore,
        history: History,
        session: EditSession,
        requests: Sequence[EditRequest],
        state: State,
        who: str,
        message: str,
    ) -> None:
        self._store, self._history, self._session = store, history, session
        self._requests, self._state, self._who, self._message = list(requests), state, who, message
        self._before = session.applied_updates
        self.record: Record | None = None

    def commit(
        self,
        update: ModelUpdate,
        *,
        metrics: Mapping[str, Any] | None = None,
        gate: Mapping[str, Any] | None = None,
    ) -> Record:
        """Apply the update to the session and keep it.

        Args:
            update: Planned by the session for the requests that the edit was begun with.
            metrics: What was measured, as JSON values.
            gate: What the checks said, as JSON values.

        Raises:
            LedgerError: The update is not of these requests, changes no weights, or one was committed already.
        """
        if self.record is not None:
            raise LedgerError("this edit was committed already; begin another one (EditLedger.editing)")
        details = edit_details(update, environment_of(self._session), metrics, gate)
        if details["requests"] != [request.to_dict() for request in self._requests]:
            raise LedgerError("this update is not of the requests that the edit was begun with; plan those")
        SessionPlanner(self._session).move_to([*self._before, update])  # first: what cannot be applied is not kept
        active = [*self._state.active, stored(self._store, update)]
        operation = "replace" if self._state.details else "edit"
        details |= self._state.details
        record = new_record(
            self._history, operation, active=active, details=details, who=self._who, message=self._message
        )
        self.record = self._store.append(record)
        return self.record


def edit_details(
    update: ModelUpdate,
    environment: Mapping[str, str],
    metrics: Mapping[str, Any] | None,
    gate: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a record says about an edit: all that planning it again needs, and what was measured.

    Raises:
        LedgerError: The update changes no weights, or does not say how it was planned.
    """
    if not update.layers:
        raise LedgerError("this update changes no weights, so there is nothing to keep; choose another --method")
    try:
        info = update.info
        requests = list(info["requests"])
        for row in requests:
            EditRequest.from_dict(row)  # raises where a replay could not
        return {
            "requests": requests,
            "method": dict(info["method"]),
            "seed": int(info["seed"]),
            "moments": fingerprint(info),
            "environment": {**(info.get("versions") or {}), **(info.get("computing") or {}), **environment},
            "metrics": None if metrics is None else dict(metrics),
            "gate": None if gate is None else dict(gate),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"this update does not say how it was planned ({error!r}); expected one from EditSession.plan"
        ) from error
