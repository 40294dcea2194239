"""The desk: one object that holds the model, its session and its ledger, and does what a page asks for.

It knows no browser. Questions about texts are answered at once (`read_fact`, `state`); everything that runs the model
or writes the ledger is a job, done by one thread in the order in which jobs came. What jobs find is put on a board,
which is the same for everybody who looks: a page that is closed and opened again shows it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from emendo.attribution import State
from emendo.editing.value_cache import ValueCache
from emendo.errors import GateError, InputError, LedgerError
from emendo.ledger import EditLedger, Record
from emendo.ledger.edits import BASE
from emendo.methods import BASELINES
from emendo.models import EditableModel
from emendo.models.identity import parameters_sha256
from emendo.report import recorded_metrics
from emendo.requests import SLOT
from emendo.statistics import MomentStore
from emendo.tracing import TraceFact
from emendo.ui.asking import as_asked, compared
from emendo.ui.board import now, shortened
from emendo.ui.commands import Commands
from emendo.ui.draft import DRAFT, KEPT, Draft, plan_draft
from emendo.ui.fact import Fact, read_fact
from emendo.ui.followed import FollowedLedger
from emendo.ui.jobs import Job
from emendo.ui.looking import carried, traced
from emendo.ui.settings import DeskSettings
from emendo.ui.taking import make_adapter, make_update, own_folder

PATIENCE = 600.0
"""Seconds that a job waits for another process that writes the ledger."""

_DONE = {"asked": "Asked", "compared": "Compared", "verified": "Verified", "carried": "What carries an answer"}
"""What is said of a command, by where its result stands on the board."""

UNEDITED = "the unedited model"


class Desk(FollowedLedger):
    """A model, its ledger, and everything that a page can do with them.

    Args:
        lm: The base model, with no edits in it.
        ledger: Of this model.
        settings: How the model is named and facts are planned.
        store: Where second moments are cached; the default is under EMENDO_HOME.
        seed: Of plans.

    Raises:
        BaseMismatchError: The ledger is of another model.
        GateConfigError: The gate's limits cannot be used.
    """

    def __init__(
        self,
        lm: EditableModel,
        ledger: EditLedger,
        settings: DeskSettings,
        *,
        store: MomentStore | None = None,
        targets: ValueCache | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self.gate = settings.gate_config()
        self.commands = Commands(settings, ledger.store.folder)
        super().__init__(lm, ledger, store=store, targets=targets, seed=seed)
        self.files = own_folder()

    def close(self) -> None:
        """Cancel what runs and end the thread; the ledger stays as it is."""
        super().close()
        shutil.rmtree(self.files, ignore_errors=True)

    # ---- looking, at once ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a page shows: ``model``, ``ledger``, ``jobs``, what is on the board, and ``versions`` of it.

        Notices what other processes have written to the ledger, and follows.
        """
        self._notice()
        values, versions = self._board.snapshot()
        with self._lock:
            draft = self._draft
        return {
            **values,
            "model": {
                "name": self.settings.model,
                "dtype": str(self.session.lm.dtype).removeprefix("torch."),
                "weights": self._base["weights_sha256"],
                "chat": self.session.lm.has_chat_template,
            },
            "ledger": {"folder": str(self.ledger.store.folder), "records": self._head[1] + 1},
            "jobs": [job.to_dict() for job in self._worker.jobs()],
            "draft": None if draft is None else {**draft.to_dict(), "stale": draft.head != self._head},
            "versions": versions,
        }

    def read_fact(self, fact: Fact) -> dict[str, Any]:
        """Which token is the key, the tokens of the answer, and what the ledger has about the fact."""
        return read_fact(self.session.lm, self.ledger, fact)

    def get_ready(self) -> Job:
        """Make ready what edits by the settings' method need and no fact changes, so that the first preview is quick.

        A baseline trains for every edit: for one there is nothing to do.
        """

        def work(job: Job) -> None:
            if self.settings.method not in BASELINES:
                self.session.prepare(
                    self.settings.method, layers=self.settings.layers, settings=dict(self.settings.settings)
                )

        return self._submit("Get ready for edits", work)

    # ---- ask ----------------------------------------------------------------------------------------------

    def ask(self, prompt: str, *, chat: bool = False) -> Job:
        """The base model and the kept edits, with the draft if there is one, on a prompt.

        Args:
            prompt: Text to be continued.
            chat: It is a question, asked in the model's chat template.
        """

        def work(job: Job) -> dict[str, Any]:
            updates, name = self.session.applied_updates, KEPT
            if (draft := self._draft) is not None and draft.head == self._head:
                updates, name = (*draft.held, draft.plan.update), f"{KEPT} and {DRAFT}"
            found = compared(self.session, State(UNEDITED), State(name, updates), as_asked([prompt], chat=chat), job)
            self._show("asked", found, self.commands.ask(prompt, chat=chat))
            return found

        return self._submit(f"Ask: {shortened(prompt)}", work)

    def compare(self, first: str, second: str, prompts: str, *, chat: bool = False) -> Job:
        """Two states of the ledger on prompts.

        Args:
            first: Id of a record, or ``"base"``.
            second: Likewise.
            prompts: One a line.
            chat: They are questions, asked in the model's chat template.
        """
        texts = [line.strip() for line in prompts.splitlines() if line.strip()]

        def work(job: Job) -> dict[str, Any]:
            states = [State(self._named(id), self.ledger.updates(id)) for id in (first, second)]
            found = compared(self.session, states[0], states[1], as_asked(texts, chat=chat), job)
            named = [id if id == BASE else f"ledger:{id[:12]}" for id in (first, second)]
            self._show("compared", found, self.commands.compare(named[0], named[1], texts, chat=chat))
            return found

        return self._submit("Compare two states", work)

    # ---- write and decide ---------------------------------------------------------------------------------

    def preview(
        self,
        fact: Fact,
        *,
        replace_old: bool = False,
        message: str = "",
        method: str | None = None,
        gated: bool = True,
    ) -> Job:
        """Plan and measure a fact; nothing is written. Refused while another draft waits for a decision.

        Args:
            fact: The fact.
            replace_old: Replace an earlier edit of the same fact.
            message: Why; kept in the record.
            method: A method or baseline; None: that of the settings.
            gated: Whether the gate judges it.
        """
        fact.record()  # what cannot be used is refused at once
        settings = self.settings if method is None else replace(self.settings, method=method)
        settings = settings if gated else replace(settings, gate="none")

        def work(job: Job) -> dict[str, Any]:
            if (waiting := self._draft) is not None:
                raise InputError(f"a draft waits for a decision: {waiting.title}. Keep it or discard it first")
            draft = job.patiently(
                lambda: plan_draft(
                    *(self.ledger, self.session, fact, settings, self.gate if gated else None, job),
                    replace=replace_old,
                    message=message,
                ),
                PATIENCE,
            )
            self._set_draft(draft)
            return draft.to_dict()

        request = fact.record().request
        return self._submit(f"Preview: {shortened(request.text)} → {shortened(request.target)}", work)

    def discard(self) -> bool:
        """Forget the draft; whether there was one."""
        had = self._draft is not None
        self._set_draft(None)
        return had

    def keep(self, update: str, typed: str = "") -> Job:
        """Keep the draft in the ledger.

        Args:
            update: Identity of the draft's update, so that nobody keeps another draft than they look at.
            typed: What was typed to keep it against the gate; its `confirmation`, which is recorded.

        Raises:
            InputError: That draft is not there.
            GateError: The gate refuses it, and the confirmation was not typed.
        """
        with self._lock:
            draft = self._draft
        if draft is None or draft.plan.update.id != update:
            raise InputError("this draft is no longer there; look at the present one, or preview the fact again")
        if draft.refused and typed.strip() != draft.confirmation:
            raise GateError(
                f"the gate refuses this edit; to keep it all the same type {draft.confirmation!r}, which is recorded"
            )

        def work(job: Job) -> Record:
            if self._draft is not draft:
                raise InputError("the draft was discarded, or kept, before its turn came")
            record = job.patiently(lambda: self._commit(draft, typed.strip()), PATIENCE)
            self._set_draft(None, instead_of=draft)
            self._board.remember(
                f"Kept: {draft.title}",
                self.commands.edit(
                    draft.fact, draft.settings, replace=draft.replace, force=draft.refused, message=draft.message
                ),
            )
            return self._now_at(record, f"Kept: {draft.title}")

        return self._submit(f"Keep: {shortened(draft.title)}", work)

    def _commit(self, draft: Draft, typed: str) -> Record:
        ledger, request = self.ledger, draft.record.request
        with ledger.editing(self.session, [request], replace=draft.replace, message=draft.message) as pending:
            if ledger.store.head() != draft.head:
                raise LedgerError(
                    "the ledger was changed since this draft was planned, so what was measured is no longer what would "
                    "be kept; discard it and preview the fact again"
                )
            report = draft.gate.override() if draft.gate is not None and draft.refused else draft.gate
            gate = None if report is None else report.to_dict()
            if gate is not None and draft.refused:
                gate["confirmed"] = {"typed": typed, "who": ledger.who, "when": now()}
            return pending.commit(draft.plan.update, metrics=recorded_metrics(draft.document), gate=gate)

    # ---- history ------------------------------------------------------------------------------------------

    def undo(self, id: str, message: str = "") -> Job:
        """Take an edit out: the model is bitwise as if it had never been made.

        Args:
            id: Of the record that made it.
            message: Why.
        """

        def work(job: Job) -> Record:
            record = job.patiently(lambda: self.ledger.revert(id, self.session, message=message), PATIENCE)
            self._follow_session()
            self._board.remember("Undone", self.commands.revert(id, message))
            return self._now_at(record, f"Undone: {id[:12]}")

        return self._submit(f"Undo {id[:12]}", work)

    def checkout(self, id: str, message: str = "") -> Job:
        """Make the state after a record, or ``"base"``, the present one."""

        def work(job: Job) -> Record:
            record = job.patiently(lambda: self.ledger.checkout(id, message=message), PATIENCE)
            self._follow_session()
            self._board.remember("Went to a state", self.commands.checkout(id, message))
            return self._now_at(record, f"Now at the state of {id[:12]}")

        return self._submit(f"Go to the state of {id[:12]}", work)

    def verify(self) -> Job:
        """Check every file of the ledger against its hash, and the weights in memory against what they should be."""

        def work(job: Job) -> dict[str, Any]:
            job.start("files")
            found = self.ledger.verify().to_dict()
            job.start("weights")
            lm = self.session.lm
            lm.contents.check()
            with lm.access.reading():
                now = parameters_sha256(lm.model)
            found |= {"now": now, "base": self._base["weights_sha256"], "edits": len(self.ledger.state())}
            self._show("verified", found, self.commands.verify())
            return found

        return self._submit("Verify", work)

    # ---- look inside --------------------------------------------------------------------------------------

    def trace(self, prompt: str, subject: str, answer: str = "", *, edited: bool = False) -> Job:
        """Where the model keeps a fact; the heat maps fill in one after the other."""
        prompt, subject = prompt.strip("\n"), subject.strip()
        if SLOT not in prompt and subject and prompt.count(subject) == 1:
            prompt = prompt.replace(subject, SLOT)
        fact = TraceFact(prompt, subject, answer.strip() or None)

        def work(job: Job) -> dict[str, Any]:
            found = traced(self.session, fact, job, lambda part: self._board.put("trace", part), edited=edited)
            if not edited:
                self._board.remember("Heat map", self.commands.trace(prompt, subject, answer.strip()))
            return found

        return self._submit(f"Heat map: {shortened(fact.text)}", work)

    def carried(self, prompt: str, answer: str, *, chat: bool = False) -> Job:
        """What every kept edit contributes to an answer, and the logit lens."""

        def work(job: Job) -> dict[str, Any]:
            (asked,) = as_asked([prompt], chat=chat)
            found = carried(self.session, self.session.applied_updates, asked, answer, job)
            self._show("carried", found, self.commands.carried(prompt, answer, chat=chat))
            return found

        return self._submit(f"What carries: {shortened(prompt)} → {shortened(answer)}", work)

    # ---- take away ----------------------------------------------------------------------------------------

    def take(self, what: str) -> Job:
        """Make a file to take away: ``"update"`` or ``"adapter"``."""
        makers: Mapping[str, Callable[[], dict[str, Any]]] = {
            "update": lambda: make_update(self.ledger, self.files),
            "adapter": lambda: make_adapter(self.ledger, self.session, self.files),
        }
        if what not in makers:
            raise InputError(f"found {what!r} to take away; expected one of {', '.join(makers)}")

        def work(job: Job) -> dict[str, Any]:
            job.start(what)
            found = makers[what]()
            line = self.commands.update() if what == "update" else self.commands.adapter()
            self._board.put("taken", {**self._board.get("taken", {}), what: {**found, "head": self._head[0]}})
            self._board.remember(f"Made the {what}", line)
            return found

        return self._submit(f"Make the {what}", work)

    def _named(self, id: str) -> str:
        return UNEDITED if id == BASE else f"after {self.ledger.record(id).id[:12]}"

    def _show(self, name: str, value: Any, command: str) -> None:
        self._board.put(name, value)
        self._board.remember(_DONE[name], command)
