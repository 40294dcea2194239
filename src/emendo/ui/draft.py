"""A draft: a fact that is planned and measured, and that nobody has decided about. The ledger knows nothing of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from emendo.attribution import State, edits_of, strongest_firing
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.evaluate import Snapshot, begins_with
from emendo.gate import GateConfig, GateReport, reference_snapshot, run_gate, with_report
from emendo.ledger import EditLedger
from emendo.report import edit_snapshots, judge, report_document, verdict_of, with_judgement
from emendo.report.judging import neighbor_mark
from emendo.requests import EditRecord
from emendo.ui.asking import compared
from emendo.ui.fact import Fact
from emendo.ui.jobs import Job
from emendo.ui.settings import DeskSettings
from emendo.updates.update import ModelUpdate

KEPT, DRAFT = "the kept edits", "the draft"


@dataclass(frozen=True)
class Draft:
    """A planned edit with everything that was measured of it.

    Attributes:
        fact: As typed.
        record: As the library reads it.
        plan: The edit.
        held: The updates that it was planned on.
        head: Id and number of the ledger's newest record then.
        replace: Whether what the ledger has about the fact gives way.
        message: Why; kept in the record.
        settings: How it was planned.
        document: Report of the edit, as `emendo edit` writes it.
        gate: What the gate found; None without one.
        rows: Every prompt before and after: kind, mark, what is said, KL, how far the edit fires.
    """

    fact: Fact
    record: EditRecord
    plan: Plan
    held: tuple[ModelUpdate, ...]
    head: tuple[str, int]
    replace: bool
    message: str
    settings: DeskSettings
    document: dict[str, Any]
    gate: GateReport | None
    rows: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """The fact in words."""
        return f"{self.record.request.text} → {self.record.request.target}"

    @property
    def refused(self) -> bool:
        """Whether the gate refuses it, so that keeping it needs force."""
        return self.gate is not None and not self.gate.passed

    @property
    def confirmation(self) -> str:
        """What has to be typed to keep it all the same."""
        return f"force {self.record.request.target}"

    def to_dict(self) -> dict[str, Any]:
        """What a page shows of it."""
        return {
            "title": self.title,
            "id": self.plan.update.id,
            "verdict": self.document["verdict"],
            "gate": None if self.gate is None else self.gate.to_dict(),
            "refused": self.refused,
            "confirmation": self.confirmation,
            "rows": list(self.rows),
            "warnings": list(self.plan.warnings),
            "layers": [layer.to_dict() for layer in self.plan.layers],
            "perplexity": self.document["judgement"]["perplexity"],
            "replace": self.replace,
            "method": self.plan.method.config.name,
            "seconds": self.document["seconds"]["total after loading"],
        }


def plan_draft(
    ledger: EditLedger,
    session: EditSession,
    fact: Fact,
    settings: DeskSettings,
    gate: GateConfig | None,
    job: Job,
    *,
    replace: bool,
    message: str,
) -> Draft:
    """Plan a fact on the ledger's present state, and measure it; the ledger and the session's weights stay as they are.

    Args:
        ledger: Its lock is held while the edit is planned and measured, so that what it stands on does not move.
        session: Stands at the ledger's state.
        fact: As typed.
        settings: How to plan.
        gate: Limits; None: none are checked.
        job: Told about the progress.
        replace: Replace an earlier edit of the same fact.
        message: Why.

    Raises:
        RequestError: The fact cannot be used, or is in the ledger.
        LedgerBusyError: Another process writes the ledger.
    """
    begin = time.perf_counter()
    record = fact.record()
    standing = session.applied_updates
    with ledger.editing(session, [record.request], replace=replace, message=message):
        head, held = ledger.store.head(), session.applied_updates
        plan = session.plan([record.request], settings.method, layers=settings.layers, settings=dict(settings.settings))
        before, after = edit_snapshots(session, plan, [record], progress=job, remember=True)
        judgement = judge(session, plan, [record], before=before, after=after, progress=job)
        plan = with_judgement(plan, judgement)
        report = None
        if gate is not None:
            report = _gated(session, plan, record, gate, before, after, job)
            plan = with_report(plan, report)
        rows = _rows(session, plan, record, standing, held, job)
    verdict = verdict_of(1, judgement, report)
    seconds = {**plan.seconds, "total after loading": time.perf_counter() - begin}
    document = report_document(plan, judgement, seconds, verdict)
    return Draft(fact, record, plan, held, head, replace, message, settings, document, report, rows)


def _gated(
    session: EditSession,
    plan: Plan,
    record: EditRecord,
    config: GateConfig,
    before: Snapshot,
    after: Snapshot,
    job: Job,
) -> GateReport:
    reference = before
    if config.reference == "base" and session.applied_updates:
        reference = reference_snapshot(session, [record], config, progress=job, remember=True)
    return run_gate(session, plan, [record], config, before=reference, after=after, progress=job)


def _rows(
    session: EditSession,
    plan: Plan,
    record: EditRecord,
    standing: tuple[ModelUpdate, ...],
    held: tuple[ModelUpdate, ...],
    job: Job,
) -> tuple[dict[str, Any], ...]:
    """Every prompt of the fact, with what is said before and after, and how far the new edit fires there."""
    request = record.request
    asked = [
        ("own", request.asked),
        *(("paraphrase", request.asking(text)) for text in record.paraphrase_prompts),
        *(("neighbor", request.asking(text)) for text in record.neighborhood_prompts),
    ]
    prompts, updates = [prompt for _, prompt in asked], (*held, plan.update)
    found = compared(session, State(KEPT, standing), State(DRAFT, updates), prompts, job, most=0)
    with session.preview_base() as base:
        fired = strongest_firing(base, edits_of(updates), prompts)[:, -1].tolist()  # the draft has one fact: the last
    rows = []
    for row in sorted(found["prompts"], key=lambda row: row["number"]):
        kind, _ = asked[row["number"]]
        before, after = row["first"]["continuation"], row["second"]["continuation"]
        if kind == "neighbor":
            mark = neighbor_mark(before, after, record.target_true or "")
        else:
            mark = "said" if begins_with(after, request.target) else "not said"
        fires = fired[row["number"]]
        rows.append({**row, "kind": kind, "mark": mark, "fires": fires if fires == fires else None})
    return tuple(rows)
