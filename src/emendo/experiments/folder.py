"""The folder of an experiment, and of each of its cells.

::

    experiment.json          configuration, cells, identity of models and data
    base/                    what the unedited models say, shared by all cells
    targets/                 target searches on the unedited models, shared by all cells
    cells/<id>/records.jsonl   one line a record
               batches.jsonl   one line a batch; a batch is finished when its line is whole
               updates/        of a cell that keeps its edits, until it is finished
               summary.json    written last: a cell that has it is finished
    .claims/                 what each of several workers is at (`emendo.parallel`)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emendo.errors import ExperimentError
from emendo.experiments.files import append_lines, read_json, read_lines, write_lines
from emendo.io.whole_file import write_json
from emendo.models.base_model import differences
from emendo.updates.update import ModelUpdate

FORMAT, VERSION = "emendo.experiment", 1


class CellFolder:
    """The folder of one cell.

    Args:
        path: Made when something is written.
        check: Called before each write; raises where this process must not write any more.
    """

    def __init__(self, path: Path, check: Callable[[], None] | None = None) -> None:
        self.path = path
        self._check = check or _nothing
        self._records, self._batches = path / "records.jsonl", path / "batches.jsonl"
        self._summary, self._updates = path / "summary.json", path / "updates"

    def summary(self) -> dict[str, Any] | None:
        """What a finished cell found; None while it is not finished."""
        found: dict[str, Any] | None = read_json(self._summary)
        if found is not None:
            shutil.rmtree(self._updates, ignore_errors=True)  # a kill may have come between the two
        return found

    def resume(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Lines of the finished batches and of their records; what a kill left of others is taken away."""
        batches = read_lines(self._batches)
        records = [row for row in read_lines(self._records) if row["batch"] < len(batches)]
        if self._batches.exists():
            write_lines(self._batches, batches)
        if self._records.exists():
            write_lines(self._records, records)
        return batches, records

    def add(self, batch: dict[str, Any], records: Sequence[dict[str, Any]], update: ModelUpdate | None) -> None:
        """Keep a finished batch: its update, its records, and last the line that says that it is finished."""
        self._check()
        if update is not None:
            update.save(self._updates / f"{batch['batch']:06d}.safetensors")
        append_lines(self._records, records)
        append_lines(self._batches, [batch])

    def updates(self, count: int) -> list[ModelUpdate]:
        """The updates of the first `count` batches, as they were applied.

        Raises:
            UpdateFileError: One of them is missing or damaged.
        """
        return [ModelUpdate.load(self._updates / f"{number:06d}.safetensors") for number in range(count)]

    def finish(self, records: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Write the records in full and, last, the summary."""
        self._check()
        write_lines(self._records, records)
        write_json(self._summary, summary)
        shutil.rmtree(self._updates, ignore_errors=True)


class ExperimentFolder:
    """The folder of an experiment.

    Args:
        path: Made when something is written.
        check: See `CellFolder`.
    """

    def __init__(self, path: Path, check: Callable[[], None] | None = None) -> None:
        self.path = path
        self._check = check
        self.base, self.targets = path / "base", path / "targets"

    def cell(self, cell_id: str) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.path / "cells" / cell_id, self._check)

    def begin(self, name: str, config: dict[str, Any], cells: Sequence[dict[str, Any]]) -> None:
        """Write experiment.json, or make sure that the one that is there is of the same experiment.

        Raises:
            ExperimentError: The folder holds another experiment; names what differs.
        """
        document = {"format": FORMAT, "version": VERSION, "name": name, "config": config, "cells": list(cells)}
        found = read_json(self.path / "experiment.json")
        if found is None:
            write_json(self.path / "experiment.json", document | {"base": {}})
            return
        if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != VERSION:
            raise ExperimentError(f"{str(self.path)!r} holds another kind of experiment.json; choose another --out")
        changed = _differences(found.get("config"), config)
        if not changed and found.get("cells") != document["cells"]:
            changed = ["  the cells are others: they were made by another version of Emendo"]
        if changed:
            raise ExperimentError(
                "\n".join(
                    [
                        f"{str(self.path)!r} holds results of another configuration; those of two would be mixed:",
                        *changed,
                        "choose another folder (--out), or put the configuration back",
                    ]
                )
            )

    def identify(self, kind: str, name: str, identity: dict[str, Any]) -> None:
        """Record which model or data the results are of, or refuse others than before.

        Args:
            kind: ``"models"``, ``"data"``, ``"devices"`` or ``"texts"``.
            name: As the configuration calls it.
            identity: Digests, as JSON values.

        Raises:
            ExperimentError: Under this name something else was used before.
        """
        document = read_json(self.path / "experiment.json")
        known = document["base"].setdefault(kind, {})
        if name not in known:
            known[name] = identity
            write_json(self.path / "experiment.json", document)
            return
        changed = _of_models(known[name], identity) if kind == "models" else _differences(known[name], identity)
        if changed:
            raise ExperimentError(
                "\n".join(
                    [
                        f"{name!r} is not what the results in {str(self.path)!r} were made with:",
                        *changed,
                        "choose another folder (--out), or bring it back",
                    ]
                )
            )


def _nothing() -> None:
    """No check."""


def _of_models(before: Any, now: dict[str, Any]) -> list[str]:
    """One line for each way in which two identities of models differ."""
    return [f"  {line}" for line in differences(before, now)]


def _differences(before: Any, now: Any) -> list[str]:
    """One line for each field that changed."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"  it was {before!r:.200}, and is now {now!r:.200}"]
    names = dict.fromkeys([*before, *now])
    return [
        f"  {name} was {before.get(name)!r:.200}, and is now {now.get(name)!r:.200}"
        for name in names
        if before.get(name) != now.get(name)
    ]
