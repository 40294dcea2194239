"""Whether records have what a cell's measures ask of them."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.errors import ExperimentError
from emendo.experiments.cells import Cell
from emendo.experiments.modes import batch_ranges, restores
from emendo.requests import EditRecord


def check_measures(cell: Cell, records: Sequence[EditRecord]) -> None:
    """Refuse measures that these records cannot have, rather than leave them out without a word.

    Raises:
        ExperimentError: Says what is missing, and what to change.
    """
    for measure in cell.measures.wanted():
        if measure.needs is not None and not any(map(measure.needs, records)):
            needed, instead = measure.needed
            raise ExperimentError(
                f"none of the {len(records)} records of {cell.data!r} has {needed}; leave the measure out "
                f"(measures.{measure.name}, --measure {measure.name}), or take {instead}"
            )
        # In modes that keep their edits, questions are asked at the end, when every fact is written.
        if measure.whole_cases and restores(cell.mode):
            _check_cases(cell, records, measure.name)


def _check_cases(cell: Cell, records: Sequence[EditRecord], name: str) -> None:
    """No question is asked while a fact that it needs is not in the model."""
    batches: dict[str, set[int]] = {}
    for number, part in enumerate(batch_ranges(len(records), cell.batch_size)):
        for position in part:
            if records[position].case:
                batches.setdefault(records[position].case, set()).add(number)
    split = [case for case, numbers in batches.items() if len(numbers) > 1]
    if split:
        raise ExperimentError(
            f"{len(split)} case(s), such as {split[0]!r}, have facts in several batches, and mode {cell.mode!r} takes "
            f"each batch out again: their {name} would be asked of half a case. Use --mode sequential-batched, where "
            f"{name} are asked after the last edit"
        )
