"""One cell of an experiment: everything that its numbers depend on, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emendo.datasets import Part
from emendo.evaluate.answered import Level
from emendo.experiments.measures import Measures
from emendo.experiments.modes import Mode, Schedule, check_mode

_UNTOLD = ("contexts.", "keys.", "target.")
"""Settings that the name of a folder leaves to its hash: most cells of a grid have them in common."""

Setting = str | int | float | bool
"""A value of a dotted setting, as YAML or the command line has it."""


@dataclass(frozen=True)
class Cell:
    """One method on one selection of records, in one mode.

    Args:
        model: As `emendo.load` takes it.
        data: A file or data set of records, as `emendo.datasets` takes it.
        method: A method or baseline.
        settings: Its settings by dotted name.
        layers: Edited layers; None: the preset's.
        mode: See `emendo.experiments.modes`.
        batch_size: Edits per step.
        n: Records; where records belong together in cases (MQuAKE), cases.
        seed: Of the selection, the sampled contexts and the self-sampled second moments.
        schedule: When records are scored.
        part: Of the subject-disjoint split: ``"all"``, ``"dev"`` or ``"report"``.
        only_answered: Only facts that the base model answers, at the level ``"argmax"`` or ``"probability"`` of
            `emendo.evaluate.answered`; None: all.
        unique_subjects: At most one record for each subject.
        measures: What else is measured.
        format: Of the data, as `emendo.datasets.load_records` takes it.

    Raises:
        ExperimentError: The mode and its numbers do not go together.
    """

    model: str
    data: str
    method: str
    mode: Mode
    batch_size: int
    n: int
    schedule: Schedule
    settings: Mapping[str, Setting] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    seed: int = 0
    part: Part = "all"
    only_answered: Level | None = None
    unique_subjects: bool = True
    measures: Measures = field(default_factory=Measures)
    format: str = "auto"

    def __post_init__(self) -> None:
        check_mode(self.mode, self.batch_size, self.n, self.schedule)

    @property
    def id(self) -> str:
        """A readable slug and eight digits of the content's SHA-256: the name of the cell's folder."""
        layers = "" if self.layers is None else "L" + "+".join(map(str, self.layers))
        told = [name for name in sorted(self.settings) if not name.startswith(_UNTOLD)]
        changed = [f"{name.rpartition('.')[2]} {str(self.settings[name]).rpartition('/')[2]}" for name in told]
        numbers = [f"b{self.batch_size}", f"n{self.n}", f"s{self.seed}"]
        parts = [self.method, layers, *changed, self.mode, *numbers]
        slug = re.sub(r"[^a-zA-Z0-9+.]+", "-", "-".join(part for part in parts if part)).strip("-")
        content = json.dumps(self.to_dict(), sort_keys=True)
        return f"{slug[:96]}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the id, which is made from them.

        A format that is told from the rows is left out, as before it could be named.
        """
        named = {name: value for name, value in vars(self).items() if (name, value) != ("format", "auto")}
        return named | {
            "settings": dict(sorted(self.settings.items())),
            "layers": None if self.layers is None else list(self.layers),
            "measures": self.measures.to_dict(),
        }
