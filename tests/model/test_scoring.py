"""Scoring on the demo model and real CounterFact records, against scorers that share no code with it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest

from benchmarks.scoring import naive_nll, pairs_of
from emendo.datasets import load_records
from emendo.evaluate import METRICS, RecordScore, evaluate_records, score_targets
from emendo.models import EditableModel
from tests.independent_scorer import Candidate, IndependentScorer, summary

pytestmark = pytest.mark.slow

N = int(os.environ.get("EMENDO_SCORING_RECORDS", "200"))


@pytest.fixture(scope="module")
def counterfact() -> Path:
    """CounterFact in its original fields, in the folder that EMENDO_DATA names."""
    folder = os.environ.get("EMENDO_DATA")
    path = Path(folder or "") / "counterfact.jsonl"
    if not folder or not path.is_file():
        pytest.skip("set EMENDO_DATA to a folder with counterfact.jsonl (CounterFact, original fields, one a line)")
    return path


def test_agrees_with_one_pair_at_a_time(demo_model: EditableModel, counterfact: Path) -> None:
    pairs = pairs_of(list(load_records(counterfact, format="counterfact").records[:8]))
    fast = score_targets(demo_model, pairs)
    naive = [naive_nll(demo_model, pair) for pair in pairs]
    assert [score.nll for score in fast] == pytest.approx(naive, abs=1e-4)


def test_every_comparison_is_that_of_an_independent_scorer(demo_model: EditableModel, counterfact: Path) -> None:
    rows = [json.loads(line) for line in counterfact.read_text(encoding="utf-8").splitlines()[:N]]
    found = evaluate_records(demo_model, load_records(counterfact, format="counterfact").records[:N])
    scorer = IndependentScorer(copy.deepcopy(demo_model.model), demo_model.tokenizer)
    expected = [scorer.record(row) for row in rows]
    largest = 0.0
    for record, independent in zip(found.records, expected, strict=True):
        largest = max(largest, agree(record, independent))
    wanted = summary(expected)
    assert {name: getattr(found.scores, name) for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert set(wanted) <= set(METRICS)
    print(f"{len(rows)} records: {wanted}, largest difference of an nll {largest:.1e}")


def agree(record: RecordScore, expected: dict[str, list[tuple[Candidate, Candidate]]]) -> float:
    """Every comparison and every argmax is equal; the largest difference of an nll."""
    differences = []
    for kind, candidates in expected.items():
        for prompt, (new, true) in zip(getattr(record, kind), candidates, strict=True):
            assert prompt.target_true is not None
            assert (prompt.target.nll < prompt.target_true.nll) == (new.nll < true.nll), prompt
            assert (prompt.target_true.nll < prompt.target.nll) == (true.nll < new.nll), prompt
            assert (prompt.target.argmax, prompt.target_true.argmax) == (new.greedy, true.greedy), prompt
            differences += [abs(prompt.target.nll - new.nll), abs(prompt.target_true.nll - true.nll)]
    assert max(differences) < 1e-4
    return max(differences)
