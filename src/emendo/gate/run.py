"""Run a gate: ask the reference and the model with the edit, and compare the difference with the limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from emendo.arguments import checked
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.weight_change import LayerChange, WeightMeter
from emendo.errors import CorpusError, InputError, MomentsError, NumericalError
from emendo.evaluate import Snapshot, TextTokens
from emendo.evaluate.remembered import RememberedAnswers
from emendo.gate.canaries import CanarySet, read_canaries
from emendo.gate.checks import broken, judge, measure
from emendo.gate.config import GateConfig, default_config
from emendo.gate.cost_statistics import pricing
from emendo.gate.evidence import Evidence
from emendo.gate.firing import FactFiring, fact_firings
from emendo.gate.kept import kept_by_rounding
from emendo.gate.report import Check, GateReport
from emendo.gate.sections import Checks
from emendo.gate.topics import Moved, TokenMove, TopicShift, text_moves
from emendo.progress import Watched, watching
from emendo.requests import EditRecord
from emendo.updates.rounding import rounding_told
from emendo.updates.update import ModelUpdate


@checked
def run_gate(
    session: EditSession,
    edit: Plan | ModelUpdate | Sequence[ModelUpdate],
    records: Sequence[EditRecord],
    config: GateConfig | None = None,
    *,
    before: Snapshot | None = None,
    after: Snapshot | None = None,
    progress: Watched = None,
) -> GateReport:
    """Measure an edit and compare it with declared limits; nothing is written to the session's model.

    Args:
        session: Holds the model; the edit is not applied to it.
        edit: A plan, an update, or updates in the order in which they are applied. None at all (an empty sequence)
            judges the updates that the session holds.
        records: The edited facts with their probes; where there is none, what asks for them is "not measured".
        config: The checks and their limits; None takes the packaged ones.
        before: The reference with the same records (`reference_snapshot`), where several edits of one model are judged
            or others ask it too; None begins one.
        after: The model with the edit, likewise, with the records as it is asked them; None begins one.
        progress: Told about the stages.

    Raises:
        GateConfigError: A canary file cannot be used.
        BaseMismatchError: An update belongs to another model, or was planned on top of others than the session holds.
        InputError: There is no edit to judge, or a prompt cannot be scored.
        NumericalError: The reference itself is broken; a broken edit fails every check instead.
    """
    begin = time.perf_counter()
    config, progress = config or default_config(), watching(progress)
    declared = config.checks.declared()
    canaries = _canaries(config)
    updates = _updates(session, edit, config)
    before = before or reference_snapshot(session, records, config, progress=progress)
    asked = edit.method.config.evaluation_prompts(records) if isinstance(edit, Plan) else records
    after = after or Snapshot(lambda: session.preview(updates), asked, progress=progress)
    checks, layers, (topics, tokens) = _measured(session, edit, updates, canaries, config, before, after)
    kept = kept_by_rounding(session, updates)
    return GateReport(
        checks=checks,
        not_declared=tuple(name for name in Checks.names() if name not in declared),
        updates=tuple(update.id for update in updates or session.applied_updates),
        reference=config.reference,
        layers=layers,
        kept=kept,
        rounding=rounding_told(kept, session.lm.dtype),
        topics=topics,
        canaries=canaries.sources,
        config=config.model_dump(mode="json", exclude={"monitor"}),
        forced=False,
        seconds=time.perf_counter() - begin,
        tokens=tokens,
    )


@checked
def reference_snapshot(
    session: EditSession,
    records: Sequence[EditRecord],
    config: GateConfig | None = None,
    *,
    progress: Watched = None,
    remember: bool = False,
) -> Snapshot:
    """What edits are compared with; several of them may share it, which then ask it once.

    Args:
        session: Holds the model; left as it was. With ``reference = "current"``, its updates have to stay the same.
        records: The facts that all of them will be asked after; may be none.
        config: Says what the reference is; None takes the packaged one.
        progress: Told about the stages.
        remember: Keep the answers under EMENDO_HOME and take those that are there.
    """
    config = config or default_config()
    base = config.reference == "base"
    held = [] if base else list(session.applied_ids)
    known = RememberedAnswers(session.lm, held) if remember else None
    return Snapshot(session.preview_base if base else session.lm, records, progress=progress, remembered=known)


def _measured(
    session: EditSession,
    edit: Plan | ModelUpdate | Sequence[ModelUpdate],
    updates: Sequence[ModelUpdate],
    canaries: CanarySet,
    config: GateConfig,
    before: Snapshot,
    after: Snapshot,
) -> tuple[tuple[Check, ...], tuple[LayerChange, ...], _Moves]:
    """Every declared check, and how far the layers and the kinds of text have moved."""
    declared, checks = config.checks.declared(), config.checks
    facts = _facts(session, updates, config)
    _ask(before, canaries, checks)
    if before.records and checks.neighborhood_lost:
        _ = before.scored
    layers: tuple[LayerChange, ...] = ()
    try:
        with session.preview(updates):  # refuses what does not fit, also where no check asks the model
            layers, unpriced = _changes(session, edit, updates, checks)
        _ask(after, canaries, checks)
        if after.records and any((checks.efficacy, checks.paraphrase, checks.neighborhood_lost)):
            _ = after.scored
        moves = _moves(canaries, before, after) if checks.read_texts else ((), ())
    except _BrokenReferenceError as error:
        raise error.found from None
    except NumericalError as error:
        return tuple(broken(name, check, str(error), facts) for name, check in declared.items()), layers, ((), ())
    firings = _firings(session, updates, canaries, before, after, moves[0]) if checks.text_firing else ()
    evidence = Evidence(before, after, canaries, layers, unpriced, session.lm, *moves, firings)
    found = [judge(name, check, measure(name, check, evidence), facts) for name, check in declared.items()]
    return tuple(found), layers, moves


class _BrokenReferenceError(Exception):
    """The reference, not the edit, has no finite numbers."""

    def __init__(self, found: NumericalError) -> None:
        super().__init__(str(found))
        self.found = found


def _ask(snapshot: Snapshot, canaries: CanarySet, checks: Checks) -> None:
    """Ask what the checks compare between two states, so that a state without finite numbers shows here."""
    if checks.neighborhood_flips:
        _ = snapshot.untouched
    if checks.questions or checks.neighborhood_lost:
        _ = snapshot.said_probes
    if checks.ask_prompts:
        snapshot.next_tokens(canaries.prompts)
    if checks.perplexity_ratio:
        snapshot.perplexity()


def _read(snapshot: Snapshot, canaries: CanarySet) -> TextTokens:
    texts = canaries.texts
    return snapshot.text_tokens(texts, lambda model: [tuple(text.encode(model)) for text in texts])


_Moves: TypeAlias = tuple[tuple[TopicShift, ...], tuple[TokenMove, ...]]


def _moves(canaries: CanarySet, before: Snapshot, after: Snapshot) -> _Moves:
    """How far kinds of text and tokens moved; read only where no earlier try of the same edit has compared them."""
    texts = canaries.texts
    if not texts:
        return (), ()

    def compare() -> list[list[dict[str, Any]]]:
        try:
            reference = _read(before, canaries)
        except NumericalError as error:
            raise _BrokenReferenceError(error) from error
        return [[asdict(move) for move in moves] for moves in text_moves(texts, reference, _read(after, canaries))]

    topics, tokens = after.compared(before, ("topics and tokens", texts), compare)
    kinds = tuple(TopicShift(**{**row, "worst": Moved(**row["worst"])}) for row in topics)
    return kinds, tuple(TokenMove(**row) for row in tokens)


def _firings(
    session: EditSession,
    updates: Sequence[ModelUpdate],
    canaries: CanarySet,
    before: Snapshot,
    after: Snapshot,
    topics: Sequence[TopicShift],
) -> tuple[FactFiring, ...]:
    """How far single facts fire on the kinds of text that the reference can read; remembered like `_moves`."""
    texts, kinds = canaries.texts, [topic.topic for topic in topics if topic.known]

    def compute() -> list[dict[str, Any]]:
        with session.preview(updates) as lm:
            return [asdict(firing) for firing in fact_firings(lm, updates or session.applied_updates, texts, kinds)]

    judged = tuple(update.id for update in updates)
    rows = after.compared(before, ("firing of facts", texts, judged), compute)
    return tuple(FactFiring(**row) for row in rows)


def _canaries(config: GateConfig) -> CanarySet:
    checks = config.checks
    if not (checks.ask_prompts or checks.read_texts):
        return CanarySet((), {})
    return read_canaries(config.canaries.files, config.folder)


def _updates(
    session: EditSession, edit: Plan | ModelUpdate | Sequence[ModelUpdate], config: GateConfig
) -> tuple[ModelUpdate, ...]:
    if isinstance(edit, Plan):
        return (edit.update,)
    if isinstance(edit, ModelUpdate):
        return (edit,)
    if not edit and not (session.applied_updates and config.reference == "base"):
        raise InputError(
            "there is no edit to judge: expected a plan or an update, or a session that holds updates and a gate with "
            'reference = "base"'
        )
    return tuple(edit)


def _facts(session: EditSession, updates: Sequence[ModelUpdate], config: GateConfig) -> int:
    """How many facts the edited model has that the reference has not, as its updates record them."""
    held = session.applied_updates if config.reference == "base" else ()
    return sum(len(update.requests) for update in (*held, *updates))


def _changes(
    session: EditSession,
    edit: Plan | ModelUpdate | Sequence[ModelUpdate],
    updates: Sequence[ModelUpdate],
    checks: Checks,
) -> tuple[tuple[LayerChange, ...], str]:
    """How far the session's updates together have moved each layer, and why there is no relative cost, if so."""
    if checks.norm_growth is None and checks.relative_cost is None and not checks.reads("layers"):
        return (), ""
    total = (*session.applied_updates, *updates)
    settings, unpriced = None, ""
    if checks.relative_cost is not None:
        settings, unpriced = pricing(edit if isinstance(edit, Plan) else total[-1])
    meter = WeightMeter(session)
    if settings is None:
        return meter.changes(total, None), unpriced
    try:
        return meter.changes(total, settings), ""
    except (CorpusError, MomentsError) as error:
        return meter.changes(total, None), f"its second moment cannot be had: {error}"
