"""A session and a ledger that several pages and processes use: one job at a time, and never behind the ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from emendo.editing.value_cache import ValueCache
from emendo.errors import EmendoError, InputError
from emendo.ledger import EditLedger, Record
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from emendo.ui.board import Board, history_rows, now
from emendo.ui.draft import Draft
from emendo.ui.jobs import Job, Worker

_TRY = 1.0
"""Seconds that the ledger waits for another writer; jobs try again, so that they can be cancelled meanwhile."""


class FollowedLedger:
    """A model at a ledger's present state, the jobs that use them, and the board on which they leave what they find.

    Args:
        lm: The base model, with no edits in it.
        ledger: Of this model.
        store: Where second moments are cached.
        targets: Target searches that are remembered.
        seed: Of plans.

    Raises:
        BaseMismatchError: The ledger is of another model.
    """

    def __init__(
        self, lm: EditableModel, ledger: EditLedger, *, store: MomentStore | None, targets: ValueCache | None, seed: int
    ) -> None:
        self.ledger = ledger
        ledger.timeout = _TRY
        self.session = ledger.session(lm, seed=seed, store=store, targets=targets)
        # Asked once: it is worked out anew where weights have changed, and a thread that looks must not meet a write.
        self._base = dict(self.session.base)
        self._head = ledger.store.head()
        self._lock = threading.Lock()
        self._board = Board()
        self._draft: Draft | None = None
        self._worker = Worker()
        self._board.put("history", history_rows(ledger.history()))

    def close(self) -> None:
        """Cancel what runs and end the thread; the ledger stays as it is."""
        self._worker.close()

    def job(self, number: int) -> Job | None:
        """A job by its number, while it is known."""
        return next((job for job in self._worker.jobs() if job.number == number), None)

    def cancel(self, number: int) -> bool:
        """Cancel a job; whether there was one to cancel."""
        return self._worker.cancel(number)

    def _submit(self, title: str, work: Callable[[Job], Any]) -> Job:
        def run(job: Job) -> Any:
            self.session.progress, self.ledger.waiting = job, job.tell
            try:
                self._follow()
                return work(job)
            finally:
                self.session.progress, self.ledger.waiting = None, None

        return self._worker.submit(title, run)

    def _notice(self) -> None:
        """Follow another process that wrote the ledger, unless a job does so anyhow."""
        if not self._worker.idle:
            return
        try:
            changed = self.ledger.store.head() != self._head
        except EmendoError as error:
            self._board.put_other("notice", f"The ledger cannot be read: {error}")
            return
        if changed:
            with suppress(InputError):  # too many jobs wait: one of them follows
                self._submit("Read what another process wrote", lambda job: None)

    def _follow(self) -> None:
        """Bring the session to the ledger's present state, if another process has changed it."""
        history = self.ledger.history()
        head = self.ledger.store.head()
        if head == self._head:
            return
        self.ledger.sync(self.session)
        new = head[1] - self._head[1]
        self._head = head
        self._board.put("history", history_rows(history))
        told = f"Another process wrote {new} record{'' if new == 1 else 's'} to the ledger; the page follows it."
        if self._draft is not None:
            told += " The draft was planned before that and can no longer be kept: discard it and preview again."
        self._board.put("notice", told)
        self._board.put("draft", now())

    def _follow_session(self) -> None:
        self.ledger.sync(self.session)

    def _now_at(self, record: Record, told: str) -> Record:
        self._head = record.id, record.number
        self._board.put("history", history_rows(self.ledger.history()))
        self._board.put("notice", f"{told} (record {record.id[:12]}).")
        return record

    def _set_draft(self, draft: Draft | None, *, instead_of: Draft | None = None) -> None:
        with self._lock:
            if instead_of is None or self._draft is instead_of:
                self._draft = draft
        self._board.put("draft", now())
