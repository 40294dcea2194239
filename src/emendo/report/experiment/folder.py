"""What an experiment has left in its folder: every planned cell, finished or not, and nothing taken on trust.

::

    DIR/experiment.json            name, configuration, the planned cells
    DIR/cells/<id>/summary.json    one finished or failed cell
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from emendo.arguments import checked
from emendo.errors import ReportError
from emendo.io.versions import UPGRADE

State = Literal["done", "failed", "missing", "damaged"]

_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
"""Ids of cells, which name folders: the plan may come from elsewhere, and must not lead out of the experiment."""

_FORMAT, _CELL_FORMAT, _VERSION = "emendo.experiment", "emendo.cell", 1


_WRITERS = "`emendo experiment` or `emendo eval --out`"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        id: Names its folder.
        plan: What the experiment asks of it: model, data, method, settings, layers, mode, batch_size, n, seed.
        state: ``"done"``, ``"failed"`` (it ended with an error), ``"missing"`` (no summary yet) or ``"damaged"``.
        summary: Its summary, empty where there is none.
        problem: Why it is not done; None where it is.
        folder: Where its files are.
    """

    id: str
    plan: Mapping[str, Any]
    state: State
    summary: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    folder: Path | None = None

    @cached_property
    def records(self) -> tuple[Mapping[str, Any], ...]:
        """The lines of its records.jsonl that can be read; none where there is no such file."""
        lines: list[Any] = []
        if self.folder is not None:
            with suppress(OSError, UnicodeDecodeError):
                for line in (self.folder / "records.jsonl").read_text(encoding="utf-8").split("\n"):
                    with suppress(ValueError, RecursionError):
                        lines.append(json.loads(line))
        return tuple(rows(lines))

    def get(self, path: str) -> Any:
        """A value of the summary by dotted path; None where a part of the path is absent."""
        return entry(self.summary, path)

    def number(self, path: str) -> float | None:
        """A finite number of the summary; None for anything else."""
        return number(self.get(path))


@dataclass(frozen=True)
class Experiment:
    """An experiment folder as it is now.

    Attributes:
        folder: Where it is.
        document: experiment.json.
        cells: In the order of the plan.
    """

    folder: Path
    document: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """The experiment's name; the folder's where it has none."""
        name = self.document.get("name")
        return name if isinstance(name, str) and name.strip() else self.folder.name

    @checked
    def in_state(self, state: State) -> tuple[Cell, ...]:
        """Cells in one state."""
        return tuple(cell for cell in self.cells if cell.state == state)

    @property
    def done(self) -> tuple[Cell, ...]:
        """Finished cells."""
        return self.in_state("done")


@checked
def read_experiment(folder: str | Path) -> Experiment:
    """Read an experiment's folder, finished or not.

    A cell without a readable summary is part of the result, with its state; only the plan itself has to be sound.

    Raises:
        ReportError: There is no experiment in the folder, or its plan cannot be read.
    """
    at = Path(folder).expanduser()
    if not at.is_dir():
        raise ReportError(f"no folder at {str(folder)!r}; expected one that {_WRITERS} wrote")
    plan_file = at / "experiment.json"
    if not plan_file.is_file():
        raise ReportError(f"{str(folder)!r} holds no experiment.json; expected one that {_WRITERS} wrote")
    try:
        document = _object(plan_file, _FORMAT)
    except ValueError as error:
        raise ReportError(
            f"cannot read {str(plan_file)!r}: {error}; run `emendo experiment` again to write it anew"
        ) from error
    return Experiment(at, document, _cells(at, document))


def entry(value: Any, path: str) -> Any:
    """A value by dotted path; None where a part of the path is absent."""
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; empty for anything else."""
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, Sequence) else []


def _cells(folder: Path, document: Mapping[str, Any]) -> tuple[Cell, ...]:
    plans = {str(plan["id"]): plan for plan in rows(document.get("cells")) if plan.get("id")}
    cells = [_cell(folder, name, plan) for name, plan in plans.items()]
    # Summaries that the plan does not name are results all the same: of an earlier, larger configuration.
    found = sorted(path.parent.name for path in (folder / "cells").glob("*/summary.json"))
    cells += [_cell(folder, name, {"id": name}) for name in found if name not in plans]
    return tuple(cells)


def _cell(folder: Path, name: str, plan: Mapping[str, Any]) -> Cell:
    if not _SAFE_ID.fullmatch(name):
        return Cell(name, plan, "damaged", problem="its id is no name of a folder in cells/, so nothing of it is read")
    path = folder / "cells" / name / "summary.json"
    if not path.is_file():
        return Cell(name, plan, "missing", problem=_how_far(path.parent))
    try:
        summary = _object(path, _CELL_FORMAT)
    except ValueError as error:
        return Cell(name, plan, "damaged", problem=f"its summary.json cannot be read: {error}")
    own = summary.get("cell")
    plan = {**plan, **own} if isinstance(own, Mapping) else plan
    if (failure := summary.get("error")) is not None:
        return Cell(name, plan, "failed", summary, _error_text(failure), path.parent)
    return Cell(name, plan, "done", summary, folder=path.parent)


def _how_far(folder: Path) -> str:
    """What the journal of an unfinished cell says."""
    try:
        batches = (folder / "batches.jsonl").read_bytes().count(b"\n")
    except OSError:
        return "not run yet"
    return f"not finished: {batches} batch(es) done"


def _error_text(error: Any) -> str:
    if isinstance(error, Mapping):
        return ": ".join(str(error[part]) for part in ("type", "message") if error.get(part)) or "it gives no reason"
    return str(error)


def _object(path: Path, name: str) -> Mapping[str, Any]:
    """A JSON object of the expected format.

    Raises:
        ValueError: It is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(value, dict) or value.get("format") != name:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"expected the format {name!r}, found {found!r}")
    version = value.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise ValueError(f"version {version!r}, this Emendo reads up to {_VERSION}: {UPGRADE}")
    return value
