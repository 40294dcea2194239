"""Run a gate: look at the reference, look at the model with the edit, hold the difference against the limits."""

from __future__ import annotations

import time
from collections.abc import Sequence

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.weight_change import LayerChange, WeightMeter
from emendo.errors import CorpusError, InputError, MomentsError, NumericalError
from emendo.gate.canaries import CanarySet, read_canaries
from emendo.gate.checks import broken, judge, measure
from emendo.gate.config import Checks, GateConfig, default_config
from emendo.gate.evidence import Evidence
from emendo.gate.look import Look, look
from emendo.gate.pricing import pricing
from emendo.gate.report import Check, GateReport
from emendo.gate.topics import TopicShift, topic_shifts
from emendo.methods.techniques import asked_after
from emendo.progress import Progress, Silent
from emendo.requests import EditRecord
from emendo.updates.update import ModelUpdate


def run_gate(
    session: EditSession,
    edit: Plan | ModelUpdate | Sequence[ModelUpdate],
    records: Sequence[EditRecord],
    config: GateConfig | None = None,
    *,
    before: Look | None = None,
    progress: Progress | None = None,
) -> GateReport:
    """Measure an edit and hold it against declared limits; nothing is written to the session's model.

    Args:
        session: Holds the model; the edit is not applied to it.
        edit: A plan, an update, or updates in the order in which they are applied. None at all (an empty sequence)
            judges the updates that the session holds.
        records: The edited facts with their probes; where there is none, what asks for them is "not measured".
        config: The checks and their limits; None takes the packaged ones.
        before: The reference as `look_at_reference` saw it with the same records and configuration, where several
            edits of one model are judged; None looks.
        progress: Told about the stages.

    Raises:
        GateConfigError: A canary file cannot be used.
        BaseMismatchError: An update belongs to another model, or was planned on top of others than the session holds.
        InputError: There is no edit to judge, or a prompt cannot be scored.
        NumericalError: The reference itself is broken; a broken edit fails every check instead.
    """
    begin = time.perf_counter()
    config, progress = config or default_config(), progress or Silent()
    declared = config.checks.declared()
    canaries = _canaries(config)
    updates = _updates(session, edit, config)
    if before is None:
        before = look_at_reference(session, records, config, progress=progress)
    checks, layers, topics = _measured(session, edit, updates, records, canaries, config, before, progress)
    return GateReport(
        checks=checks,
        not_declared=tuple(name for name in Checks.model_fields if name not in declared),
        updates=tuple(update.id for update in updates or session.applied_updates),
        reference=config.reference,
        layers=layers,
        topics=topics,
        canaries=canaries.sources,
        config=config.model_dump(mode="json", exclude={"monitor"}),
        forced=False,
        seconds=time.perf_counter() - begin,
    )


def look_at_reference(
    session: EditSession,
    records: Sequence[EditRecord],
    config: GateConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Look:
    """What edits are compared with, measured once for several of them.

    Args:
        session: Holds the model; left as it was.
        records: The facts that all of them will be asked after; may be none.
        config: The checks; None takes the packaged ones.
        progress: Told about the stages.

    Raises:
        GateConfigError: A canary file cannot be used.
        InputError: A prompt cannot be scored.
        NumericalError: The reference itself is broken.
    """
    config = config or default_config()
    with session.preview_base() if config.reference == "base" else session.preview([]) as reference:
        return look(reference, records, _canaries(config), config.checks, progress or Silent())


def _measured(
    session: EditSession,
    edit: Plan | ModelUpdate | Sequence[ModelUpdate],
    updates: Sequence[ModelUpdate],
    records: Sequence[EditRecord],
    canaries: CanarySet,
    config: GateConfig,
    before: Look,
    progress: Progress,
) -> tuple[tuple[Check, ...], tuple[LayerChange, ...], tuple[TopicShift, ...]]:
    """Every declared check, and how far the layers and the kinds of text have moved."""
    declared = config.checks.declared()
    asked = asked_after(edit.method.config, records) if isinstance(edit, Plan) else records
    layers: tuple[LayerChange, ...] = ()
    try:
        with session.preview(updates) as edited:
            layers, unpriced = _changes(session, edit, updates, config.checks)
            after = look(edited, asked, canaries, config.checks, progress)
        topics = _topics(canaries, before, after)
    except NumericalError as error:
        return tuple(broken(name, check, str(error)) for name, check in declared.items()), layers, ()
    evidence = Evidence(before, after, layers, unpriced, session.lm, topics)
    return tuple(judge(name, check, measure(name, check, evidence)) for name, check in declared.items()), layers, topics


def _canaries(config: GateConfig) -> CanarySet:
    checks = config.checks
    if not (checks.ask_prompts or checks.read_texts):
        return CanarySet((), {})
    return read_canaries(config.canaries.files, config.folder)


def _topics(canaries: CanarySet, before: Look, after: Look) -> tuple[TopicShift, ...]:
    if before.texts is None or after.texts is None:
        return ()
    return topic_shifts(canaries.texts, before.texts, after.texts)


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


def _changes(
    session: EditSession,
    edit: Plan | ModelUpdate | Sequence[ModelUpdate],
    updates: Sequence[ModelUpdate],
    checks: Checks,
) -> tuple[tuple[LayerChange, ...], str]:
    """How far the session's updates together have moved each layer, and why there is no relative cost, if so."""
    if checks.norm_growth is None and checks.relative_cost is None:
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
