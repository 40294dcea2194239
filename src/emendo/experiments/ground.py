"""The unedited model: what it says about the records of a cell, asked once and shared by all cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.errors import ExperimentError
from emendo.evaluate import answered, packaged_text
from emendo.evaluate.answered import Level
from emendo.evaluate.measure import Given, Measure
from emendo.evaluate.measures import MEASURES
from emendo.evaluate.rows import Row, score_rows
from emendo.evaluate.samples import sampled_prompts
from emendo.evaluate.snapshot import Snapshot
from emendo.experiments.data import records_digest
from emendo.experiments.files import read_json
from emendo.experiments.folder import ExperimentFolder
from emendo.experiments.measures import Measures
from emendo.experiments.meter import Meter
from emendo.io.plain_file import read_plain_text
from emendo.io.whole_file import write_json
from emendo.models import EditableModel
from emendo.parallel import Workers
from emendo.requests import EditRecord

SCORING = 2
"""Of what is asked of the unedited model and how it is scored: raised where a score, perplexity, text or entropy of the
same model and records becomes another, so that no cell compares what two versions of the code say. 1: files whose names
did not tell."""


@dataclass(frozen=True)
class BaseState:
    """What the unedited model says: the "before" of every cell on these records.

    Attributes:
        rows: Scores, one row a record.
        perplexity: Of the held-out text; None where it is not measured.
        texts: Continuations of the sampled prompts, as `sampled_prompts` lists them.
        seconds: What it took, by stage, when it was asked.
        peak_bytes: Highest memory by stage.
        begin_bytes: Memory at the begin of each of these stages.
        further: Answers to the measures of the table, by name; None where one is not made.
    """

    rows: list[Row]
    perplexity: float | None
    texts: list[str]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    begin_bytes: dict[str, int]
    further: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As the folder keeps it: further measures beside the rest, those that came later only where they are made."""
        known = {name: getattr(self, name) for name in _STATE}
        return known | {
            name: self.further.get(name)
            for name, measure in MEASURES.items()
            if measure.of_base and (measure.since < LATER or name in self.further)
        }

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> BaseState:
        """What `to_dict` wrote, of this or an earlier version."""
        return cls(**{name: kept[name] for name in _STATE}, further={n: v for n, v in kept.items() if n not in _STATE})


_STATE = ("rows", "perplexity", "texts", "seconds", "peak_bytes", "begin_bytes")

LATER = 2
"""Measures that came with this version of the folder or later are named only where they are made."""


def held_out_perplexity(snapshot: Snapshot, measures: Measures) -> float | None:
    """Perplexity of the held-out text; None where it is not measured.

    Raises:
        ExperimentError: The text cannot be read.
    """
    if not measures.perplexity:
        return None
    return snapshot.perplexity(held_out_text(measures), max_tokens=measures.perplexity_tokens).value


def continued(snapshot: Snapshot, measures: Measures) -> list[str]:
    """Continuations of the prompts that are sampled of a snapshot's records."""
    prompts = sampled_prompts(snapshot.records, measures.samples, first=snapshot.first)
    return list(snapshot.continuations([sample.asked for sample in prompts], measures.new_tokens))


def further_measures(snapshot: Snapshot, wanted: Sequence[Measure], before: Snapshot) -> dict[str, Any]:
    """Everything that is wanted of an edited model, as JSON values.

    Args:
        snapshot: Of it.
        wanted: What is measured.
        before: The unedited model with the same records, prepared for what is wanted.
    """
    given = Given(before, frozenset(measure.name for measure in wanted))
    found = {name: None for name, measure in MEASURES.items() if measure.since < LATER}
    return found | {measure.name: measure.ask(snapshot, given) for measure in wanted}


def held_out_text(measures: Measures) -> str:
    """The text of which perplexity is measured.

    Raises:
        ExperimentError: It cannot be read.
    """
    if measures.perplexity_text is None:
        return packaged_text()
    try:
        return read_plain_text(Path(measures.perplexity_text).expanduser(), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"cannot read the held-out text {measures.perplexity_text!r}: {error}; expected a UTF-8 file "
            "(measures.perplexity_text)"
        ) from error


class Ground:
    """One unedited model and what is known of it.

    Args:
        lm: The model.
        folder: Where what it says is kept.
        searchers: Who makes target searches; None: this process, one after another.
    """

    def __init__(self, lm: EditableModel, folder: ExperimentFolder, searchers: Workers | None = None) -> None:
        self.lm = lm
        self.folder = folder
        self.searchers = searchers
        self._states: dict[str, BaseState] = {}

    def state(self, records: Sequence[EditRecord], measures: Measures, zsre: bool = False) -> BaseState:
        """The "before" of these records, with token accuracy if they are of zsRE; the model must hold no edits."""
        assert not self.lm.holds_edits
        asked: dict[str, Any] = {"records": records_digest(records), "measures": measures.to_dict()}
        asked |= {"zsre": True} if zsre else {}
        if measures.perplexity and measures.perplexity_text is not None:  # a path says nothing about its text
            asked["text"] = hashlib.sha256(held_out_text(measures).encode()).hexdigest()
        key = self._key("state", asked)
        if key not in self._states:
            path = self.folder.base / f"{key}.json"
            if read_json(path) is None:
                write_json(path, self._ask(records, measures, zsre).to_dict())
            self._states[key] = BaseState.from_dict(
                read_json(path)
            )  # read back, so that a resumed run has the same numbers
        return self._states[key]

    def answered(self, records: Sequence[EditRecord], level: Level) -> list[EditRecord]:
        """The records that the model answers; found out once and kept in the folder."""
        path = self.folder.base / f"{self._key('answered', [records_digest(records), level])}.json"
        kept = read_json(path)
        if kept is None:
            number = {id(record): position for position, record in enumerate(records)}
            kept = [number[id(record)] for record in answered(self.lm, records, level=level)]
            write_json(path, kept)
        return [records[position] for position in kept]

    def _ask(self, records: Sequence[EditRecord], measures: Measures, zsre: bool) -> BaseState:
        meter, snapshot = Meter(self.lm.device), Snapshot(self.lm, records)
        with meter.stage("scoring before"):
            rows = score_rows(snapshot.scored)
        with meter.stage("perplexity before"):
            ppl = held_out_perplexity(snapshot, measures)
        with meter.stage("generation before"):
            texts = continued(snapshot, measures)
        wanted, further = measures.wanted(zsre), {}
        given = Given(None, frozenset(measure.name for measure in wanted))
        for measure in wanted:
            if measure.of_base:
                with meter.stage(f"{measure.stage} before"):
                    further[measure.name] = measure.ask(snapshot, given)
        return BaseState(rows, ppl, texts, meter.seconds, meter.peak_bytes, meter.begin_bytes, further)

    def _key(self, kind: str, content: Any) -> str:
        lm = self.lm
        digests = [lm.weights_digest(), lm.config_digest(), lm.tokenizer_digest()]
        identity = [SCORING, kind, *digests, content]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
