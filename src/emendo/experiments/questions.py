"""A data set's own questions: token accuracy of zsRE, probes of KnowEdit and MQuAKE, as plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from emendo.errors import ExperimentError
from emendo.evaluate import probe_means, probe_scores, zsre_means, zsre_scores
from emendo.evaluate.generated import GeneratedAnswer
from emendo.evaluate.probes import ProbeScore
from emendo.evaluate.zsre import ZsreRecord
from emendo.experiments.cells import Cell
from emendo.experiments.modes import batch_ranges, restores
from emendo.models import ModelAdapter
from emendo.requests import EditRecord

_ONCE = 1
"""Bootstraps are made over all records of a cell, not of each batch."""


def check_measures(cell: Cell, records: Sequence[EditRecord]) -> None:
    """Refuse measures that these records cannot have, rather than leave them out without a word.

    Raises:
        ExperimentError: Says what is missing, and what to change.
    """
    if cell.measures.shift and not any(record.neighborhood_prompts for record in records):
        raise ExperimentError(
            f"none of the {len(records)} records of {cell.data!r} has neighborhood_prompts, on which the shift is "
            "measured; leave the measure out (measures.shift, --measure shift), or take a data set with such prompts"
        )
    if cell.measures.probes:
        _check_probes(cell, records)


def _check_probes(cell: Cell, records: Sequence[EditRecord]) -> None:
    """Probes are there, and no question is asked while a fact that it needs is not in the model."""
    if not any(record.probes for record in records):
        raise ExperimentError(
            f"none of the {len(records)} records of {cell.data!r} has a probe; leave the measure out "
            "(measures.probes, --measure probes), or take a data set with probes (docs/reference/data.md)"
        )
    if not restores(cell.mode):
        return  # they are asked at the end, when every fact is written
    batches: dict[str, set[int]] = {}
    for number, part in enumerate(batch_ranges(len(records), cell.batch_size)):
        for position in part:
            if records[position].case:
                batches.setdefault(records[position].case, set()).add(number)
    split = [case for case, numbers in batches.items() if len(numbers) > 1]
    if split:
        raise ExperimentError(
            f"{len(split)} case(s), such as {split[0]!r}, have facts in several batches, and mode {cell.mode!r} takes "
            "each batch out again: their probes would be asked of half a case. Use --mode sequential-batched, where "
            "probes are asked after the last edit"
        )


def zsre_rows(adapter: ModelAdapter, records: Sequence[EditRecord]) -> list[dict[str, Any]]:
    """Token accuracies of each record, as `ZsreRecord` has them."""
    return [asdict(record) for record in zsre_scores(adapter, records, n_resamples=_ONCE).records]


def zsre_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Their means in percent, with intervals."""
    return zsre_means([ZsreRecord(**row) for row in rows]).to_dict()


def probe_rows(
    adapter: ModelAdapter, records: Sequence[EditRecord], new_tokens: int | None
) -> list[list[dict[str, Any]]]:
    """The answers to each record's probes, as `ProbeScore` has them; generated ones too, of so many tokens."""
    if not any(record.probes for record in records):
        return [[] for _ in records]
    found = probe_scores(adapter, records, new_tokens=new_tokens, n_resamples=_ONCE)
    return [[asdict(probe) for probe in probes] for probes in found.records]


def probe_summary(rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means in percent by kind and measure, with intervals."""
    return probe_means([[_probe(row) for row in probes] for probes in rows]).to_dict()


def _probe(row: Mapping[str, Any]) -> ProbeScore:
    said = row["generated"]
    return ProbeScore(**{**row, "generated": None if said is None else GeneratedAnswer(**said)})
