"""A fact with the key of a common token is found among others by how far it fires on ordinary text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emendo.attribution import edits_of, firing
from emendo.editing.session import EditSession
from emendo.gate import run_gate
from emendo.gate import topics as topics_module
from emendo.gate.config import GateConfig, default_config, parse_config
from emendo.gate.report import Check
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.fold import fold
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.quick_plans import DARRIEUX, EIFFEL, planned
from tests.random_updates import random_update

HIDDEN = EditRequest("What is the name of this river{}", "?", "Rome")
TEXTS = [
    {"topic": "questions", "text": "Where is it? It is here. Who was that? It was me. When? Now. Why? I like it."},
    {"topic": "prose", "text": "The weather was calm that morning and we opened the book again."},
    {"topic": "prose", "text": "I wrote this down last year."},
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GateConfig:
    """Tiny random models read no text better than a guess, so the bar is moved for them."""
    monkeypatch.setattr(topics_module, "KNOWN", 10.0)
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in TEXTS), encoding="utf-8")
    text = '[checks.text_firing]\nlimit = 0.1\nunmeasured = "pass"\n[canaries]\nfiles = ["mine.jsonl"]\n'
    return parse_config(text, "mine.toml", tmp_path)


def judged(session: EditSession, edit: ModelUpdate | list[ModelUpdate], config: GateConfig) -> Check:
    (check,) = run_gate(session, edit, [], config).checks
    return check


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3_moe"])
def test_it_is_the_root_mean_square_over_a_kind(family: str, config: GateConfig, tmp_path: Path) -> None:
    lm = build_tiny(family)
    session = EditSession(lm, store=MomentStore(tmp_path / "moments"))
    settings = {"distribution": "even", "target.steps": 3, "contexts.scheme": "fixed", "moments.multiple": 20}
    update = session.plan([EIFFEL, DARRIEUX, HIDDEN], "emmet", layers=[0, 1], settings=settings).update
    check = judged(session, update, config)
    edits, sums = edits_of([update]), {"questions": torch.zeros(3), "prose": torch.zeros(3)}
    counts = dict.fromkeys(sums, 0)
    for row in TEXTS:
        ids = lm.encode(row["text"])
        sums[row["topic"]] += firing(lm, edits, lm.batch([ids]))[0].square().sum(dim=0).float()
        counts[row["topic"]] += len(ids)
    rates = torch.stack([(sums[topic] / counts[topic]).sqrt() for topic in sums])
    assert check.measured == pytest.approx(float(rates.max()), rel=1e-4)
    topic, fact = divmod(int(rates.argmax()), 3)
    assert edits.edits[fact].label in check.words
    assert f"in all of {list(sums)[topic]}" in check.words
    values = [row["value"] for row in check.details]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3


def test_the_fact_that_fires_everywhere_is_named(config: GateConfig, store: MomentStore) -> None:
    """Keys of tiny random models have all much in common; so those that are to be silent are made to be."""
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    update = planned(session, store, [EIFFEL, DARRIEUX, HIDDEN], "emmet", [1]).update
    silent = torch.tensor([1e-3, 1e-3, 1.0])[:, None]
    parts = tuple(replace(part, dual_keys=part.dual_keys * silent) for part in update.layers)
    found = judged(session, replace(update, layers=parts), config)
    assert not found.passed
    assert found.words.startswith(f"{found.measured:.4g} is how far '? → Rome' fires in all of ")
    assert all(row["value"] < 0.01 for row in found.details[1:])
    quiet = replace(update, layers=tuple(replace(part, dual_keys=part.dual_keys * 1e-3) for part in update.layers))
    assert judged(session, quiet, config).passed


def test_updates_that_do_not_keep_facts_apart_are_not_measured(config: GateConfig, store: MomentStore) -> None:
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    folded = fold(
        planned(lm, store, [EIFFEL, DARRIEUX, HIDDEN], "emmet", [1]).update, tolerance=None, max_rank=2
    ).update
    for update in (folded, random_update(lm, {1: 2}, seed=1)):
        check = judged(session, update, config)
        assert (check.passed, check.measured) == (True, None)
        assert "does not keep its facts apart" in check.words


def test_what_is_judged_is_what_comes_on_top_of_what_the_session_holds(config: GateConfig, store: MomentStore) -> None:
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    session.apply(planned(session, store, [HIDDEN], "emmet", [1]))
    on_top = planned(session, store, [EIFFEL], "emmet", [1]).update
    assert "Eiffel" in judged(session, on_top, config).words
    assert "'? → Rome'" in judged(session, [], config).words


def test_the_packaged_gate_declares_it() -> None:
    check = default_config().checks.text_firing
    assert check is not None
    assert (check.limit, check.unmeasured) == (0.12, "pass")
