"""`EditLedger`: a history of edits on disk, beside the model that they are for.

::

    ledger = EditLedger.create("facts", EditSession(lm))
    session = ledger.session(lm)                    # the model with every active edit in it
    record = ledger.edit(session, [request], message="ticket 4711")
    ledger.revert(record.id, session)               # bitwise as if it had never been made
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from emendo.arguments import Anything, NotNegative, checked
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.errors import LedgerError
from emendo.io.versions import __version__
from emendo.ledger.change import State, fold_state, loaded, needs_planner, recalled, rewritten, stored, without_edit
from emendo.ledger.conflicts import replaced_facts
from emendo.ledger.edits import BASE, History, StoredEdit
from emendo.ledger.identity import base_of, check_base
from emendo.ledger.lock import user_name
from emendo.ledger.pending import PendingEdit, edit_details
from emendo.ledger.record import Active, Record
from emendo.ledger.replay import Planner, SessionPlanner
from emendo.ledger.stamp import check_texts, new_record
from emendo.ledger.store import LedgerStore
from emendo.ledger.verify import Verification, verify
from emendo.methods import DEFAULT_METHOD, Method
from emendo.models import EditableModel
from emendo.requests import EditRequest, check_requests
from emendo.updates.merge import merge
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import ModelUpdate

TIMEOUT = 60.0
"""Seconds that a writer waits for another one."""


T = TypeVar("T")
Judged: TypeAlias = Annotated[T, Anything()]
"""What a record keeps is judged as a whole before anything is written (`stamp.py`), in words that name the option."""


class EditLedger:
    """A ledger that exists; see `create` for a new one.

    Every operation that writes holds the ledger's lock from beginning to end, and happens in one step or not at all.

    Args:
        folder: The ledger.
        timeout: Seconds to wait for another writer.
        waiting: Told who is waited for.
        who: Name that records are signed with; the user's unless given.

    Raises:
        LedgerError: There is no ledger, or it is damaged.
    """

    @checked
    def __init__(
        self,
        folder: str | Path,
        *,
        timeout: NotNegative = TIMEOUT,
        waiting: Callable[[str], None] | None = None,
        who: Judged[str | None] = None,
    ) -> None:
        self.store = LedgerStore(folder)
        self.timeout, self.waiting = timeout, waiting
        self._history: History | None = None
        self.who = who or user_name()
        check_texts(self.who, "")
        self.store.head()

    @classmethod
    @checked
    def create(
        cls,
        folder: str | Path,
        base: EditSession | Mapping[str, str],
        *,
        model: str = "",
        message: Judged[str] = "",
        **options: Any,
    ) -> EditLedger:
        """Make a ledger for a model.

        Args:
            folder: A new or an empty folder.
            base: A session of the unedited model, or its identity as `base_of` gives it.
            model: How commands find the model again; its name unless given.
            message: Kept in the first record.
            options: `timeout`, `waiting` and `who`, as for the class.

        Raises:
            LedgerError: There is a ledger already, or other files; or the base is no identity of a model.
        """
        identity = base_of(base) if isinstance(base, EditSession) else dict(base)
        details = {"base": identity, "model": model or identity.get("name"), "emendo": __version__}
        who = options.get("who") or user_name()
        check_texts(who, message)
        first = new_record(None, "init", details=details, who=who, message=message)
        LedgerStore(folder).create(first, timeout=options.get("timeout", TIMEOUT))
        return cls(folder, **options)

    # ---- looking -----------------------------------------------------------------------------------------

    def history(self) -> History:
        """All records and the present state, read and checked anew."""
        return self._followed(self.store.chain())

    def log(self) -> list[Record]:
        """All records, oldest first."""
        return self.store.chain()

    @checked
    def record(self, id: str) -> Record:
        """The record whose id begins with `id`."""
        return self.history().record(id)

    @property
    def base(self) -> dict[str, str]:
        """Identity of the model that the ledger is for."""
        return self.history().base

    @checked
    def state(self, id: str | None = None) -> tuple[Active, ...]:
        """The active updates after a record, in order.

        Args:
            id: The record; None: the newest; ``"base"``: the unedited model, with none.
        """
        return self.history().state(id)

    @checked
    def updates(self, id: str | None = None) -> tuple[ModelUpdate, ...]:
        """The updates of a state, each compared with its digest."""
        return loaded(self.store, self.state(id))

    @checked
    def merged(self, id: str | None = None) -> ModelUpdate:
        """One update that does what those of a state do together: their factors, stacked (`emendo.updates.merge`).

        Its weights are those of the state up to the order of float32 additions.

        Raises:
            InputError: The state has no updates.
        """
        return merge(self.updates(id))

    def verify(self) -> Verification:
        """Check every file against its hash; reports everything that is wrong and raises nothing."""
        return verify(self.store)

    # ---- sessions ----------------------------------------------------------------------------------------

    @checked
    def session(self, lm: EditableModel, **options: Any) -> EditSession:
        """A session of a model with the active updates applied.

        Args:
            lm: The base model, with no edits in it.
            options: Of `EditSession`.

        Raises:
            BaseMismatchError: It is not the model that the ledger is for.
        """
        session = EditSession(lm, **options)
        self.sync(session)
        return session

    @checked
    def sync(self, session: EditSession) -> None:
        """Bring a session to the present state."""
        history = self.history()
        check_base(history, base_of(session))
        SessionPlanner(session).move_to(recalled(self.store, history.active))

    # ---- operations --------------------------------------------------------------------------------------

    @checked
    @contextmanager
    def editing(
        self, session: EditSession, requests: Sequence[EditRequest], *, replace: bool = False, message: Judged[str] = ""
    ) -> Iterator[PendingEdit]:
        """Hold the lock with the session at the state that an edit is planned on; `commit` of what is given keeps it.

        Left without `commit`, or by an error, the ledger is as it was and the session is at its state.

        Args:
            session: Of the base model.
            requests: The facts to write.
            replace: Replace earlier edits of the same facts, in the same record.
            message: Why.

        Raises:
            ConflictError: A fact is active with another target, and `replace` is not set.
            RequestError: A fact is already there.
            BaseMismatchError: The session is of another model.
            LedgerBusyError: Another process writes.
        """
        check_requests(requests)
        with self._locked("edit", message) as history:
            check_base(history, base_of(session))
            facts = replaced_facts(history.edits(), requests, replace=replace, folder=self.store.folder)
            planner = SessionPlanner(session)
            with self._restored(planner):
                state = self._without_facts(history, facts, planner)
                yield (pending := PendingEdit(self.store, history, session, requests, state, self.who, message))
            if pending.record is None:
                planner.move_to(recalled(self.store, history.active))

    @checked
    def edit(
        self,
        session: EditSession,
        requests: Sequence[EditRequest],
        method: str | Method = DEFAULT_METHOD,
        *,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        replace: bool = False,
        message: Judged[str] = "",
        examine: Callable[[Plan], Mapping[str, Any]] | None = None,
    ) -> Record:
        """Plan an edit on the present state and keep it; the session then has it too.

        Args:
            session: Of the base model.
            requests: The facts to write.
            method: As for `EditSession.plan`, like `layers` and `settings`.
            layers: Edited layers.
            settings: Values by dotted name.
            replace: Replace earlier edits of the same facts, in the same record.
            message: Why.
            examine: Measures the plan before it is kept; what it returns is recorded, what it raises stops the edit.
        """
        with self.editing(session, requests, replace=replace, message=message) as pending:
            plan = session.plan(requests, method, layers=layers, settings=settings)
            return pending.commit(plan.update, metrics=examine(plan) if examine else None)

    @checked
    def commit_edit(
        self, update: ModelUpdate, *, message: Judged[str] = "", metrics: Judged[Mapping[str, Any] | None] = None
    ) -> Record:
        """Keep an update that was planned elsewhere on exactly the present state.

        Args:
            update: From a plan; its `info` says which requests and how.
            message: Why.
            metrics: What was measured, as JSON values.

        Raises:
            LedgerError: It was planned on another state.
            ConflictError: A fact is active with another target.
            BaseMismatchError: It is of another model.
        """
        with self._locked("edit", message) as history:
            check_base(history, update.base)
            details = edit_details(update, {}, metrics, None)
            requests = [EditRequest.from_dict(row) for row in details["requests"]]
            replaced_facts(history.edits(), requests, replace=False, folder=self.store.folder)
            held = Predecessors.of(entry.update for entry in history.active)
            if update.preceding != held:
                raise LedgerError(
                    f"this update was planned on {update.preceding}, and the ledger holds {held}; plan it again on the "
                    "present state (EditLedger.session(lm))"
                )
            state = [*history.active, stored(self.store, update)]
            return self._commit(history, "edit", state, details, message)

    @checked
    def revert(
        self, id: str, planner: Planner | EditSession | None = None, *, how: str = "replay", message: Judged[str] = ""
    ) -> Record:
        """Take an edit out: the ledger and the session are as if it had never been made.

        Args:
            id: Beginning of the id of the record that made it; of a folded one, all edits in it.
            planner: A session of the base model; not needed for the last edit.
            how: ``"replay"`` plans every later edit again in order, with its own method values and seed: bitwise what
                they would be without the edit. ``"algebraic"`` works the later updates out from stored keys and
                values: quick, and close (`emendo.updates.without`).
            message: Why.

        Raises:
            LedgerError: No such record, it is no longer active, or it cannot be planned again.
        """
        planner = SessionPlanner(planner) if isinstance(planner, EditSession) else planner
        with self._locked("revert", message) as history:
            if isinstance(planner, SessionPlanner):
                check_base(history, base_of(planner.session))
            gone = history.reverted_by(history.record(id))
            with self._restored(planner):
                state = without_edit(self.store, history, gone, planner, how)
                details = {"reverts": gone, "how": how, **state.details}
                return self._commit(history, "revert", state.active, details, message)

    @checked
    def needs_model(self, id: str, how: str = "replay") -> bool:
        """Whether `revert` needs a session for this: not for the last edit, and rarely for the algebraic way."""
        history = self.history()
        return needs_planner(self.store, history, history.reverted_by(history.record(id)), how)

    @checked
    def checkout(self, id: str, *, message: Judged[str] = "") -> Record:
        """Make the state after an earlier record the present one; nothing is lost, and it can be left the same way.

        Args:
            id: Beginning of a record's id, or ``"base"`` for the unedited model.
            message: Why.
        """
        with self._locked("checkout", message) as history:
            target = None if id == BASE else history.record(id).id
            return self._commit(history, "checkout", history.state(id), {"target": target}, message)

    @checked
    def compact(self, tolerance: float = 1e-6, *, message: Judged[str] = "") -> Record:
        """Fold all active updates into one of the smallest rank; what they were folded from stays in the ledger.

        Args:
            tolerance: Largest relative change of a layer's ΔW in the Frobenius norm (`emendo.updates.fold`).
            message: Why.

        Raises:
            LedgerError: There is nothing to fold.
        """
        with self._locked("compact", message) as history:
            state = fold_state(self.store, history, tolerance)
            return self._commit(history, "compact", state.active, state.details, message)

    # ---- how ---------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, operation: str, message: str) -> Iterator[History]:
        check_texts(self.who, message)
        before: list[Record] = []
        try:
            with self.store.locked(operation, timeout=self.timeout, waiting=self.waiting) as before:
                yield self._followed(before)
        except BaseException as error:
            record = self.store.last_tried
            if before and record is not None and record.parent == before[-1].id and self.store.holds(record):
                error.add_note(
                    f"record {record.id[:12]}… ({record.operation}, number {record.number}) is in the ledger"
                )
            raise

    def _followed(self, chain: Sequence[Record]) -> History:
        self._history = History(chain, self._history)
        return self._history

    @contextmanager
    def _restored(self, planner: Planner | None) -> Iterator[None]:
        """After an error, the model is at the state that the ledger has: the one before it, unless it came too late."""
        try:
            yield
        except BaseException:
            if planner is not None:
                restore = planner.restore if isinstance(planner, SessionPlanner) else planner.move_to
                restore(recalled(self.store, self.history().active))
            raise

    def _without_facts(self, history: History, facts: Sequence[str], planner: Planner) -> State:
        """The state without some facts, each edit that held one planned again without it."""

        def touched(edit: StoredEdit) -> bool:
            return any(request.fact in facts for request in edit.requests.values())

        kept, redo = history.split(history.active, touched)
        left = [shorter for edit in redo if (shorter := edit.without(facts)) is not None]
        state = rewritten(self.store, kept, left, planner)
        gone = [edit.id for edit in redo if touched(edit)]
        return State(state.active, {"reverts": gone, "how": "replay", **state.details} if facts else {})

    def _commit(
        self, history: History, operation: str, active: Sequence[Active], details: Mapping[str, Any], message: str
    ) -> Record:
        return self.store.append(
            new_record(history, operation, active=active, details=details, who=self.who, message=message)
        )
