"""What cells will cost, counted before they run; in seconds where the folder has measured rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from emendo.experiments.cells import Cell
from emendo.experiments.modes import batch_ranges, restores
from emendo.methods import Method, ResolvedMethod
from emendo.requests import EditRecord
from emendo.solve.distribution import searched_layers


@dataclass(frozen=True)
class Cost:
    """The work of one cell.

    Attributes:
        edits: Facts that are written.
        batches: Plans.
        searches: Target searches that have to be made; for a trained baseline none.
        shared_searches: Searches that an earlier cell makes and this one reads.
        scored: Prompts to score with a target each.
        base_scored: Those of the unedited model, which cells on the same records share.
        perplexities: Times that perplexity is measured.
    """

    edits: int
    batches: int
    searches: int
    shared_searches: int
    scored: int
    base_scored: int
    perplexities: int

    def seconds(self, rates: Mapping[str, float]) -> float | None:
        """Estimated time, or None where a rate that counts has not been measured."""
        counted = {
            "search": self.searches,
            "score": self.scored + self.base_scored,
            "batch": self.batches,
            "perplexity": self.perplexities,
        }
        if any(count and name not in rates for name, count in counted.items()):
            return None
        return math.fsum(count * rates.get(name, 0.0) for name, count in counted.items())


@dataclass
class Counter:
    """Counts cells in the order in which they run: what an earlier one finds is not counted again."""

    _searched: set[object] = field(default_factory=set)
    _scored: set[object] = field(default_factory=set)

    def count(self, cell: Cell, records: Sequence[EditRecord], resolved: ResolvedMethod[Method]) -> Cost:
        """The work of the next cell.

        Args:
            cell: What is done.
            records: Its records.
            resolved: Its method with every value fixed.
        """
        selection = (cell.model, cell.data, cell.n, cell.seed, cell.part, cell.only_answered, cell.unique_subjects)
        made, shared = self._count_searches(cell, len(records), resolved, selection)
        n = len(records)
        ranges = batch_ranges(n, cell.batch_size)
        once = _prompts(records)
        times = {"immediate": 1, "final": 1, "both": 2}[cell.schedule]
        measures = cell.measures
        base = (selection, measures)
        first_here = base not in self._scored
        self._scored.add(base)
        points = len(measures.checkpoints) or 10
        measured = (
            min(len(ranges), measures.perplexity_batches) if restores(cell.mode) else min(len(ranges), points) + 1
        )
        retained = 0 if restores(cell.mode) else min(len(ranges), points) * min(n, measures.retention_first) * 2
        return Cost(
            edits=n,
            batches=len(ranges),
            searches=made,
            shared_searches=shared,
            scored=once * times + retained,
            base_scored=once if first_here else 0,
            perplexities=(measured + first_here) if measures.perplexity else 0,
        )

    def _count_searches(
        self, cell: Cell, n: int, resolved: ResolvedMethod[Method], selection: object
    ) -> tuple[int, int]:
        """Searches that are made, and those that are read."""
        method = resolved.on_engine()
        if method is None:
            return 0, 0
        config = method.config
        layers = searched_layers(config.distribution, config.layers)
        each = n * len(layers)
        joint = config.batching == "joint" or cell.batch_size == 1
        if not joint or config.target.shared == "subject":
            return each, 0
        on_base = n if restores(cell.mode) else min(n, cell.batch_size)
        key = (selection, on_base, config.contexts.scheme, config.target, layers)
        if key in self._searched:
            return each - on_base * len(layers), on_base * len(layers)
        self._searched.add(key)
        return each, 0


def _prompts(records: Sequence[EditRecord]) -> int:
    """Prompts times targets."""
    return sum(
        (1 + len(record.paraphrase_prompts) + len(record.neighborhood_prompts)) * (1 + (record.target_true is not None))
        for record in records
    )


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    rows = [asdict(cost) for cost in costs]
    return Cost(**{name: sum(row[name] for row in rows) for name in Cost.__dataclass_fields__})


def measured_rates(finished: Iterable[tuple[Mapping[str, Any], Cost]]) -> dict[str, float]:
    """Seconds for one search, one scored prompt, one batch (all but its search and scoring), one perplexity.

    Args:
        finished: Summaries of cells with their costs.
    """
    spent = {"search": 0.0, "score": 0.0, "batch": 0.0, "perplexity": 0.0}
    done = dict.fromkeys(spent, 0)
    for summary, cost in finished:
        seconds = summary["seconds"]
        done["search"] += summary["work"]["searches"]
        done["score"] += cost.scored
        done["batch"] += cost.batches
        for stage, value in seconds.items():
            if stage == "targets":
                spent["search"] += value if summary["work"]["searches"] else 0.0
            elif stage.startswith("scoring") and not stage.endswith("before"):
                spent["score"] += value
            elif stage == "perplexity before":
                spent["perplexity"] += value
            elif not stage.endswith("before") and stage not in ("perplexity", "perplexity final", "checkpoints"):
                spent["batch"] += value
        done["perplexity"] += "perplexity before" in seconds
    return {name: spent[name] / done[name] for name in spent if done[name]}


def duration(seconds: float) -> str:
    """A time for people, such as ``2 h 10 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
