"""The unedited model: what it says about the records of a cell, asked once and shared by all cells."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emendo.errors import ExperimentError
from emendo.evaluate import answered, packaged_text, perplexity
from emendo.evaluate.answered import Level
from emendo.experiments.cells import Measures
from emendo.experiments.data import records_digest
from emendo.experiments.extras import answer_tokens, generated_rows, text_entropies
from emendo.experiments.files import read_json
from emendo.experiments.folder import ExperimentFolder
from emendo.experiments.meter import Meter
from emendo.experiments.questions import probe_rows, zsre_rows
from emendo.experiments.scores import Row, score_rows
from emendo.io.plain_file import read_plain_text
from emendo.io.whole_file import write_json
from emendo.models import ModelAdapter
from emendo.requests import EditRecord

SCORING = 2
"""Of what is asked of the unedited model and how it is scored: raised where a score, perplexity, text or entropy of the
same model and records becomes another, so that no cell compares what two versions of the code say. 1: files whose names
did not tell."""

_TOGETHER = 32
"""Prompts of one batch of generation."""


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
        generated: Generated answers, one row a record, where they are wanted.
        entropy: GE of the free texts, where it is wanted.
        zsre: Token accuracies, one row a record, where the records are of zsRE.
        probes: Answers to the probes of each record, where they are wanted.
    """

    rows: list[Row]
    perplexity: float | None
    texts: list[str]
    seconds: dict[str, float]
    peak_bytes: dict[str, int]
    begin_bytes: dict[str, int]
    generated: list[dict[str, Any]] | None = None
    entropy: list[float] | None = None
    zsre: list[dict[str, Any]] | None = None
    probes: list[list[dict[str, Any]]] | None = None


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt that is continued in words.

    Attributes:
        position: Of its record in the cell.
        kind: ``"edited"``, ``"paraphrase"`` or ``"neighbor"``.
        prompt: The text.
        wanted: What it should say after the edit; empty where unknown.
    """

    position: int
    kind: str
    prompt: str
    wanted: str


def sampled_prompts(records: Sequence[EditRecord], positions: Sequence[int], most: int) -> list[SampledPrompt]:
    """What is continued in words: of each of the first `most` records the prompt, a paraphrase, a neighbour."""
    prompts = []
    for position, record in zip(positions, records, strict=True):
        if position < most:
            target = record.request.target
            prompts.append(SampledPrompt(position, "edited", record.request.text, target))
            prompts += [SampledPrompt(position, "paraphrase", text, target) for text in record.paraphrase_prompts[:1]]
            prompts += [
                SampledPrompt(position, "neighbor", text, record.target_true or "")
                for text in record.neighborhood_prompts[:1]
            ]
    return prompts


def continued(adapter: ModelAdapter, prompts: Sequence[SampledPrompt], new_tokens: int) -> list[str]:
    """Greedy continuations."""
    texts = [prompt.prompt for prompt in prompts]
    return [
        text.strip()
        for at in range(0, len(texts), _TOGETHER)
        for text in adapter.generate_many(texts[at : at + _TOGETHER], new_tokens)
    ]


def held_out_perplexity(adapter: ModelAdapter, measures: Measures) -> float | None:
    """Perplexity of the held-out text on the model as it stands; None where it is not measured.

    Raises:
        ExperimentError: The text cannot be read.
    """
    if not measures.perplexity:
        return None
    return perplexity(adapter, held_out_text(measures), max_tokens=measures.perplexity_tokens).value


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
        adapter: The model.
        folder: Where what it says is kept.
    """

    def __init__(self, adapter: ModelAdapter, folder: ExperimentFolder) -> None:
        self.adapter = adapter
        self.folder = folder
        self._states: dict[str, BaseState] = {}

    def state(self, records: Sequence[EditRecord], measures: Measures, zsre: bool = False) -> BaseState:
        """The "before" of these records, with token accuracy if they are of zsRE; the model must hold no edits."""
        assert not self.adapter.holds_edits
        asked: dict[str, Any] = {"records": records_digest(records), "measures": measures.to_dict()}
        asked |= {"zsre": True} if zsre else {}
        if measures.perplexity and measures.perplexity_text is not None:  # a path says nothing about its text
            asked["text"] = hashlib.sha256(held_out_text(measures).encode()).hexdigest()
        key = self._key("state", asked)
        if key not in self._states:
            path = self.folder.base / f"{key}.json"
            if read_json(path) is None:
                write_json(path, asdict(self._ask(records, measures, zsre)))
            self._states[key] = BaseState(**read_json(path))  # read back, so that a resumed run has the same numbers
        return self._states[key]

    def answered(self, records: Sequence[EditRecord], level: Level) -> list[EditRecord]:
        """The records that the model answers; found out once and kept in the folder."""
        path = self.folder.base / f"{self._key('answered', [records_digest(records), level])}.json"
        kept = read_json(path)
        if kept is None:
            number = {id(record): position for position, record in enumerate(records)}
            kept = [number[id(record)] for record in answered(self.adapter, records, level=level)]
            write_json(path, kept)
        return [records[position] for position in kept]

    def _ask(self, records: Sequence[EditRecord], measures: Measures, zsre: bool) -> BaseState:
        meter = Meter(self.adapter.device)
        with meter.stage("scoring before"):
            rows = score_rows(self.adapter, records)
        with meter.stage("perplexity before"):
            ppl = held_out_perplexity(self.adapter, measures)
        with meter.stage("generation before"):
            prompts = sampled_prompts(records, range(len(records)), measures.samples)
            texts = continued(self.adapter, prompts, measures.new_tokens)
        generated, entropy, accuracy, probes = None, None, None, None
        if measures.generated:
            with meter.stage("generated answers before"):
                generated = generated_rows(self.adapter, records)
        if measures.entropy:
            with meter.stage("entropy before"):
                entropy = text_entropies(self.adapter, records, 0)
        if zsre:
            with meter.stage("zsRE token accuracy before"):
                accuracy = zsre_rows(self.adapter, records)
        if measures.probes:
            with meter.stage("probes before"):
                probes = probe_rows(self.adapter, records, answer_tokens(measures))
        measured = meter.seconds, meter.peak_bytes, meter.begin_bytes
        return BaseState(rows, ppl, texts, *measured, generated, entropy, accuracy, probes)

    def _key(self, kind: str, content: Any) -> str:
        adapter = self.adapter
        digests = [adapter.weights_digest(), adapter.config_digest(), adapter.tokenizer_digest()]
        identity = [SCORING, kind, *digests, content]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
