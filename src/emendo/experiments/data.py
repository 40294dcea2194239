"""The records of a cell: read once, selected by its seed, the same in every cell that asks for the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.datasets import load_records, select
from emendo.evaluate.answered import Level
from emendo.experiments.cells import Cell
from emendo.requests import JOINS, EditRecord, check_requests, spelled_as_stored

_ZSRE = ("zsre", "zsre-easyedit")


@dataclass(frozen=True)
class Source:
    """Records of a file or data set.

    Attributes:
        name: As the configuration calls it.
        records: Those that can be used.
        rejected: Rows that cannot.
        sha256: Digest of the records.
        zsre: Whether they are of zsRE, which has a score of its own.
    """

    name: str
    records: tuple[EditRecord, ...]
    rejected: int
    sha256: str
    zsre: bool = False

    def identity(self) -> dict[str, Any]:
        """What tells it from another source."""
        return {"sha256": self.sha256, "records": len(self.records), "rejected": self.rejected}


def read_source(name: str, format: str) -> Source:
    """Read records.

    Args:
        name: What `cell.data` names.
        format: How it is read.

    Raises:
        InputError: The source cannot be read, or holds no record.
    """
    loaded = load_records(name, format=format)
    records = tuple(loaded.records)
    return Source(name, records, len(loaded.rejected), records_digest(records), loaded.source["format"] in _ZSRE)


def select_records(
    source: Source, cell: Cell, answered: Callable[[Sequence[EditRecord], Level], list[EditRecord]]
) -> list[EditRecord]:
    """The records of a cell, in the order in which they are edited.

    Args:
        source: What `cell.data` names.
        cell: Whose records are wanted.
        answered: Of some records, those that the base model answers; asked only where the cell wants it.

    Raises:
        DatasetError: There are not enough records; says what was left out.
        ConflictError: Some of them ask for one fact twice.
    """
    pool = source.records if cell.only_answered is None else answered(source.records, cell.only_answered)
    chosen = list(select(pool, n=cell.n, seed=cell.seed, unique_subjects=cell.unique_subjects, part=cell.part))
    check_requests([record.request for record in chosen])
    return chosen


def records_digest(records: Sequence[EditRecord]) -> str:
    """SHA-256 over the content of records, in their order.

    How a record joins is part of it only where that makes other texts than before it could be said.
    """
    digest = hashlib.sha256()
    for record in records:
        content = asdict(record)
        if _spelled_as_stored(record):
            del content["request"]["join"]
        if record.request.chat is None:  # as before requests could be asked in chat
            del content["request"]["chat"]
        if not record.guessed:  # as before prompts could be proposed, and probes asked in chat
            del content["guessed"]
        for probe in content["probes"]:
            if not probe["chat"]:
                del probe["chat"]
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _spelled_as_stored(record: EditRecord) -> bool:
    request = record.request
    if request.chat is not None:
        return False
    prompts = (request.text, *record.paraphrase_prompts, *record.neighborhood_prompts)
    targets = [target for target in (request.target, record.target_true) if target is not None]
    own = [(prompt, target, request.join) for prompt in prompts for target in targets]
    probes = [(probe.prompt, answer, JOINS[0]) for probe in record.probes for answer in probe.answers]
    return all(spelled_as_stored(*pair) for pair in [*own, *probes])
