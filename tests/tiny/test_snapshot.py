"""One state of a model is asked each question once, whoever asks; and a measure is one entry of a table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import emendo.evaluate.scoring as scoring_module
import emendo.evaluate.snapshot as snapshot_module
from emendo.editing.session import EditSession
from emendo.errors import InputError, NumericalError
from emendo.evaluate import Snapshot, evaluate_records, next_token_log_probs, packaged_text, perplexity
from emendo.evaluate.measure import Column, Given, Measure, Panel
from emendo.evaluate.measures import MEASURES, register_measure
from emendo.experiments import Cell, Experiment, ExperimentConfig, Measures
from emendo.models import EditableModel
from emendo.report.experiment import read_experiment
from emendo.report.experiment.tables import score_tables
from emendo.requests import EditRecord
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.experiment_cases import CHEAP, cell, write_records
from tests.quick_plans import EIFFEL, JAPAN, quick_plan
from tests.tiny.conftest import Command
from tests.tiny.test_cli import QUICK, RECORD, jsonl

RECORDS = [
    EditRecord(EIFFEL, "Paris", ("The Eiffel Tower stands in",), ("The capital of France is",)),
    EditRecord(JAPAN, "Tokyo", (), ("The capital of Italy is",)),
]


# ---- each question once ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("home")
def test_an_edit_with_a_gate_asks_each_record_twice_and_reads_the_text_twice(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after, where the report and the gate had each asked both."""
    scored: Counter[Any] = Counter()
    predicted: list[int] = []
    perplexity_module = sys.modules["emendo.evaluate.perplexity"]  # the package has a function of this name
    by_pair, likelihood = scoring_module.scores_by_pair, perplexity_module._log_likelihood

    def pairs(lm: Any, asked: Any, **more: Any) -> Any:
        asked = list(asked)
        scored.update(set(asked))
        return by_pair(lm, asked, **more)

    def windows(lm: Any, rows: Any) -> Any:
        predicted.append(sum(len(row) - 1 for row in rows))
        return likelihood(lm, rows)

    monkeypatch.setattr(scoring_module, "scores_by_pair", pairs)
    monkeypatch.setattr(perplexity_module, "_log_likelihood", windows)
    facts = jsonl(tmp_path / "facts.jsonl", RECORD)
    code, out, err = emendo(
        *("edit", "--model", model, "--requests", facts, *QUICK, "--layers", "1", "--gate", "default", "--force"),
        *("--json", "-q"),
    )
    assert code == 0, err
    document = json.loads(out)
    prompts = 1 + len(RECORD["paraphrase_prompts"]) + len(RECORD["neighborhood_prompts"])
    assert len(scored) == 2 * prompts  # the new and the true target of each
    assert set(scored.values()) == {2}
    (text,) = [check["n"] for check in document["gate"]["checks"] if check["name"] == "perplexity_ratio"]
    assert sum(predicted) == 2 * text
    after = document["judgement"]["after"]["records"][0]["efficacy"][0]["target"]["argmax"]
    efficacy = next(check for check in document["gate"]["checks"] if check["name"] == "efficacy")
    assert efficacy["measured"] == float(after)


def test_a_snapshot_says_what_the_functions_say_and_asks_each_thing_once(tiny_llama: EditableModel) -> None:
    opened: list[int] = []

    @contextmanager
    def state() -> Iterator[EditableModel]:
        opened.append(1)
        yield tiny_llama

    snapshot = Snapshot(state, RECORDS)
    for _ in range(2):
        assert snapshot.scores == evaluate_records(tiny_llama, RECORDS)
        assert snapshot.perplexity(packaged_text(), max_tokens=60) == perplexity(
            tiny_llama, packaged_text(), max_tokens=60
        )
        neighbors = snapshot.neighborhood
        assert neighbors is not None
        asked = ["The capital of France is", "The capital of Italy is"]
        assert neighbors.hidden.equal(next_token_log_probs(tiny_llama, asked).hidden)
        assert snapshot.continuations(asked, 3) == tuple(text.strip() for text in tiny_llama.generate_many(asked, 3))
        assert [record.edited.prompt for record in snapshot.said] == [record.request.text for record in RECORDS]
    assert len(opened) == 5
    assert Snapshot(state).neighborhood is None
    assert len(opened) == 5


def test_a_question_that_failed_is_asked_again(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(tiny_llama, RECORDS)

    def failing(*_: Any, **__: Any) -> Any:
        raise NumericalError("not finite")

    with monkeypatch.context() as patched:
        patched.setattr(snapshot_module, "score_records", failing)
        with pytest.raises(NumericalError):
            _ = snapshot.scored
    assert len(snapshot.scored) == 2


def test_a_model_that_has_changed_is_not_asked_for_what_it_was(session: EditSession) -> None:
    plan = quick_plan(session, [EIFFEL])
    current, base = Snapshot(session.lm, RECORDS), Snapshot(session.preview_base, RECORDS)
    known = current.scored
    session.apply(plan)
    assert current.scored == known
    with pytest.raises(InputError, match="holds other edits"):
        _ = current.neighborhood
    assert base.scored == known
    assert Snapshot(session.lm, RECORDS).scored != known


# ---- a measure is one entry ------------------------------------------------------------------------------------


def _length(snapshot: Snapshot, given: Given) -> list[int]:
    prompts = [record.request.text for record in snapshot.records]
    return [len(text) for text in snapshot.continuations(prompts, 5)]


def _mean_length(before: Any, parts: Any) -> dict[str, Any] | None:
    after = [row for part in parts for row in part]
    return {"before": sum(before) / len(before), "after": sum(after) / len(after)} if after else None


@pytest.fixture
def length() -> Iterator[Measure]:
    column = Column("length", "length", "characters", "length.after", ".1f", "characters of a greedy text")
    panels = (Panel("length", "Length", (column,)),)
    title = {"title": "Length", "share": "greedy text"}
    yield register_measure(Measure("length", "", "length", _length, _mean_length, rows=True, panels=panels, **title))
    MEASURES.unregister("length")


def test_a_new_measure_is_one_entry(length: Measure, tmp_path: Path, store: MomentStore) -> None:
    data = write_records(tmp_path / "records.jsonl")
    plain, measured = Measures(**CHEAP), Measures(**CHEAP, length=True)
    assert "length" not in plain.to_dict()
    cells: list[Cell] = [cell(data, measures=measured), cell(data, measures=plain)]
    lm = build_tiny("llama")
    found, other = Experiment("test", {}, cells, tmp_path / "out", lambda _: lm, store=store).run()
    assert set(found["length"]) == {"before", "after"}
    assert found["length"]["before"] > 0
    assert "length" not in other
    experiment = read_experiment(tmp_path / "out")
    (line, *_) = experiment.cells[0].records
    assert set(line["length"]) == {"before", "after"}
    (table,) = [table for table in score_tables(experiment) if table.title == "Length after the edits (greedy text)"]
    assert [row[-1].text for row in table.rows] == [f"{found['length']['after']:.1f}"]
    config = {"name": "x", "data": data, "n": 2, "methods": ["emmet"], "measures": {"length": True}}
    assert ExperimentConfig.model_validate(config).expand()[0].measures.to_dict()["length"] is True
