"""Running one cell: batch after batch, each kept when it is done, so that a killed run is taken up where it was.

Everything that a summary says is made from what the journal holds (`summary.py`), whether the run was disturbed or not.
In modes that keep their edits, the updates of finished batches are applied again, in their order, before the next batch
is planned: the weights are then the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.value_cache import ValueCache
from emendo.editing.weight_change import WeightMeter
from emendo.errors import EmendoError, InfeasibleError, NumericalError, SelfCheckError
from emendo.evaluate.measure import Given
from emendo.evaluate.measures import MEASURES
from emendo.evaluate.rows import Row, holds, score_rows
from emendo.evaluate.snapshot import Snapshot
from emendo.experiments.cells import Cell
from emendo.experiments.ground import BaseState, Ground, continued, further_measures, held_out_perplexity
from emendo.experiments.meter import Meter
from emendo.experiments.modes import batch_ranges, restores
from emendo.experiments.summary import Final, make_summary
from emendo.progress import Progress, Silent
from emendo.requests import EditRecord
from emendo.statistics import MomentStore

FINDINGS = (InfeasibleError, NumericalError, SelfCheckError)
"""Failures that say something about the method on these facts: a result, written down and not tried again."""

_POINTS = 10
"""Points of a curve, where the configuration names none."""


def run_cell(
    cell: Cell,
    records: Sequence[EditRecord],
    ground: Ground,
    *,
    zsre: bool = False,
    store: MomentStore | None = None,
    progress: Progress | None = None,
    title: str = "edits",
) -> dict[str, Any]:
    """Run a cell to its end, or read what it found; the model is left unedited.

    Args:
        cell: What to do.
        records: Its records, in the order in which they are edited.
        ground: The model.
        zsre: Whether the records are of zsRE, which has a score of its own.
        store: Where second moments are cached; None: under EMENDO_HOME.
        progress: Told about the edits.
        title: What the progress calls this cell.

    Returns:
        The summary, as it stands in the cell's folder.

    Raises:
        InputError: The method cannot run on this model, or a file of the folder cannot be used.
    """
    folder = ground.folder.cell(cell.id)
    found = folder.summary()
    if found is not None:
        return found
    before = ground.state(records, cell.measures, zsre)
    run = _CellRun(cell, records, ground, before, store, progress or Silent(), zsre)
    final, error = None, None
    try:
        run.batches(title)
        final = run.final()
    except FINDINGS as failure:
        error = run.describe(failure)
    finally:
        run.session.rollback()
    if not all(run.session.verify_rolled_back().values()):
        raise SelfCheckError(
            f"cell {cell.id}: after rolling back, a weight is not what it was; expected the same bytes"
        )
    batches, rows = folder.resume()
    summary, lines = make_summary(cell, records, before, run.resolved.to_dict(), batches, rows, final, error)
    folder.finish(lines, summary)
    found = folder.summary()
    assert found is not None
    return found


class _CellRun:
    """A cell on its way."""

    def __init__(
        self,
        cell: Cell,
        records: Sequence[EditRecord],
        ground: Ground,
        before: BaseState,
        store: MomentStore | None,
        progress: Progress,
        zsre: bool,
    ) -> None:
        self.cell, self.records, self.before, self.progress = cell, list(records), before, progress
        self.lm, self.folder = ground.lm, ground.folder.cell(cell.id)
        self.ranges = batch_ranges(len(self.records), cell.batch_size)
        self.keeps = not restores(cell.mode)
        # Where edits stay, only the first batch is searched on the unedited model.
        searched = self.records[: cell.batch_size] if self.keeps else self.records
        requests = [record.request for record in searched]
        self.memory = ValueCache(requests, ground.folder.targets, workers=ground.searchers)
        self.session = EditSession(self.lm, seed=cell.seed, store=store, targets=self.memory, progress=progress)
        self.resolved = self.session.resolve(cell.method, layers=cell.layers, settings=cell.settings)
        self.meter = Meter(self.lm.device)
        with self.meter.stage("second moments"):
            method = self.resolved.on_engine()
            self.moments = None if method is None else method.config.moments
            self.weights = WeightMeter(self.session)
            if method is not None:
                self.weights.learn(method.config.written_layers, method.config.moments)
        self.wanted = cell.measures.wanted(zsre)
        with self.meter.stage("distributions before"):
            self.base = self._prepared(range(len(self.records))) if self.keeps else None
        self.held: dict[int, bool] = {}
        self.number = 0

    def batches(self, title: str) -> None:
        """Run the batches that are not done yet."""
        done, rows = self.folder.resume()
        self.held = {row["position"]: holds(row["immediate"]) for row in rows if row["immediate"] is not None}
        if self.keeps:
            for update in self.folder.updates(len(done)):
                self.session.apply(update)
        left = self.ranges[len(done) :]
        # Many batches are one stage, in edits; a single one shows its own stages.
        alone = len(left) == 1
        self.session.progress = self.progress if alone else None
        progress = Silent() if alone or not left else self.progress
        progress.start(title, sum(map(len, left)))
        try:
            for number, part in enumerate(left, start=len(done)):
                self.number = number
                self._batch(number, part)
                progress.advance(len(part))
        finally:
            progress.finish()

    def final(self) -> Final:
        """What is measured after the last batch, where its edits are still in the model."""
        if not self.keeps:
            return Final(meter=self.meter)
        assert self.base is not None
        rows, measures = None, self.cell.measures
        snapshot = self._snapshot(range(len(self.records)))
        if self.cell.schedule in ("final", "both"):
            with self.meter.stage("scoring final"):
                rows = score_rows(snapshot.scored)
        with self.meter.stage("perplexity final"):
            ppl = held_out_perplexity(snapshot, measures)
        with self.meter.stage("generation final"):
            texts = continued(snapshot, measures)
        with self.meter.stage("further measures final"):
            further = further_measures(snapshot, self.wanted, self.base)
        return Final(rows, ppl, texts, self._weight_change(), further, self.meter)

    def describe(self, failure: EmendoError) -> dict[str, Any]:
        """A failure as a result."""
        return {"type": type(failure).__name__, "message": str(failure), "batch": self.number}

    def _batch(self, number: int, part: range) -> None:
        batch = [self.records[position] for position in part]
        meter = Meter(self.lm.device)
        work = self._searches()
        with meter.stage("distributions before"):
            base = self.base or self._prepared(part)
        with meter.stage("edit"):
            plan = self.session.plan(
                [record.request for record in batch],
                self.cell.method,
                layers=self.cell.layers,
                settings=self.cell.settings,
            )
        meter.divide("edit", plan.seconds)
        with meter.stage("apply"):
            self.session.apply(plan.update)
        rows: list[Row] | None = None
        snapshot = self._snapshot(part)
        if self.cell.schedule in ("immediate", "both"):
            with meter.stage("scoring immediate"):
                rows = score_rows(snapshot.scored)
            self.held |= {position: holds(row) for position, row in zip(part, rows, strict=True)}
        line: dict[str, Any] = {"batch": number, "first": part.start, "count": len(part), "edits": part.stop}
        line |= self._measured(number, part, meter, snapshot, base)
        if not self.keeps:
            with meter.stage("restore"):
                self.session.rollback()
        line |= {"layers": [report.to_dict() for report in plan.layers], "work": self._work(plan, work)}
        line |= {"targets": _targets(plan, len(batch)), "leverage": self._leverage(plan, len(batch))}
        line |= {"seconds": meter.seconds, "peak_bytes": meter.peak_bytes, "begin_bytes": meter.begin_bytes}
        lines = [
            {
                "id": self.records[position].request.label,
                "position": position,
                "batch": number,
                "before": self.before.rows[position],
                "immediate": None if rows is None else rows[position - part.start],
                "final": None,
            }
            for position in part
        ]
        self.folder.add(line, lines, plan.update if self.keeps else None)

    def _measured(self, number: int, part: range, meter: Meter, snapshot: Snapshot, base: Snapshot) -> dict[str, Any]:
        """Everything but scores of a batch that is taken out again; of one that stays, a point of the curve."""
        found: dict[str, Any] = {"perplexity": None, "texts": [], "point": None}
        if self.keeps:
            if number in self._checkpoints():
                with meter.stage("checkpoints"):
                    found["point"] = self._point(part.stop)
            return found
        if number in spread(len(self.ranges), self.cell.measures.perplexity_batches):
            with meter.stage("perplexity"):
                found["perplexity"] = held_out_perplexity(snapshot, self.cell.measures)
        with meter.stage("generation"):
            found["texts"] = continued(snapshot, self.cell.measures)
        with meter.stage("further measures"):
            return found | further_measures(snapshot, self.wanted, base)

    def _point(self, edits: int) -> dict[str, Any]:
        """A point of the curve: the model after so many edits."""
        ppl = held_out_perplexity(Snapshot(self.lm), self.cell.measures)
        base = self.before.perplexity
        totals = self._weight_change()
        return {
            "edits": edits,
            "perplexity_ratio": None if ppl is None or base is None else ppl / base,
            "retention": self._retention(min(edits, self.cell.measures.retention_first)),
            "relative_norm": max((total["relative_norm"] for total in totals), default=0.0),
            **self._curves(),
        }

    def _weight_change(self) -> list[dict[str, Any]]:
        """What all edits that are in the model do to each layer."""
        return [
            {"layer": change.layer, "relative_norm": change.norm_growth, "relative_cost": change.relative_cost}
            for change in self.weights.changes(self.session.applied_updates, self.moments)
        ]

    def _retention(self, first: int) -> float | None:
        """Percent of the first edits that held right after they were made and hold now; of all, where none was scored.

        An edit holds where every token of its target is the argmax.
        """
        positions = [position for position in range(first) if self.held.get(position, not self.held)]
        if not positions:
            return None
        plain = [replace(record, paraphrase_prompts=(), neighborhood_prompts=()) for record in self._asked(positions)]
        return 100 * sum(map(holds, score_rows(Snapshot(self.lm, plain).scored))) / len(positions)

    def _curves(self) -> dict[str, float | None]:
        """The measures that have a curve, of the first records; None where one is not wanted."""
        found: dict[str, float | None] = {}
        given = Given(self.base, frozenset(measure.name for measure in self.wanted))
        for name, measure in MEASURES.items():
            if measure.curve is not None:
                found[name] = None
                if measure in self.wanted:
                    first = self._snapshot(range(min(measure.curve.most, len(self.records))))
                    found[name] = measure.curve.value(measure.ask(first, given))
        return found

    def _checkpoints(self) -> set[int]:
        """Numbers of the batches after which the curve gets a point."""
        wanted = self.cell.measures.checkpoints
        if not wanted:
            return spread(len(self.ranges), _POINTS)
        ends = [part.stop for part in self.ranges]
        return {next((number for number, end in enumerate(ends) if end >= edits), len(ends) - 1) for edits in wanted}

    def _asked(self, positions: Sequence[int]) -> list[EditRecord]:
        """Some records as the model is asked them after the edit."""
        return self.resolved.config.evaluation_prompts([self.records[position] for position in positions])

    def _snapshot(self, part: range) -> Snapshot:
        """The model as it stands, edited, with some of the records."""
        return Snapshot(self.lm, self._asked(part), first=part.start)

    def _prepared(self, part: range) -> Snapshot:
        """The unedited model with some of the records, asked what the measures will need of it."""
        snapshot = Snapshot(self.lm, [self.records[position] for position in part], first=part.start)
        for measure in self.wanted:
            if measure.prepare is not None:
                measure.prepare(snapshot)
        return snapshot

    def _leverage(self, plan: Plan, edits: int) -> dict[str, list[float]] | None:
        """Leverage k A⁻¹ kᵀ of every edit's key by layer, A without earlier edits; None where rows are no edits."""
        parts, method = plan.update.layers, plan.method.on_engine()
        if method is None or any(part.keys is None or len(part.keys) != edits for part in parts):
            return None
        prepared = self.session.preservation(method.config)
        return {
            str(part.layer): prepared[part.layer].leverage(part.keys).tolist()
            for part in parts
            if part.keys is not None
        }

    def _searches(self) -> tuple[int, int, int, float]:
        memory = self.memory
        return memory.asked, memory.searched, memory.shared, memory.shared_seconds

    def _work(self, plan: Plan, before: tuple[int, int, int, float]) -> dict[str, Any]:
        """Value searches of a batch: made for it, and found in the folder, where others had made them."""
        asked, searched, shared, seconds = (now - then for now, then in zip(self._searches(), before, strict=True))
        return {
            "searches": searched if asked else len(plan.targets),
            "shared_searches": shared,
            "shared_seconds": seconds,
        }


def _targets(plan: Plan, edits: int) -> list[dict[str, float]] | None:
    """What the target search found for every edit; None where it was not one search for each."""
    if len(plan.targets) != edits:
        return None
    return [{"nll": found.nll, "delta_norm": found.delta_norm, "init_norm": found.init_norm} for found in plan.targets]


def spread(count: int, most: int) -> set[int]:
    """At most `most` of the numbers below `count`, evenly spaced, the last always among them."""
    most = min(count, most)
    return {-(-count * step // most) - 1 for step in range(1, most + 1)}
