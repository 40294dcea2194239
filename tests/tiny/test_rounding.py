"""What a report says was written is what is in the model: measured after the cast to the model's dtype."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import EmendoWarning, GateError
from emendo.export import write_checkpoint
from emendo.gate import run_gate, with_report
from emendo.gate.config import parse_config
from emendo.requests import EditRecord, EditRequest
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import build_tiny

FACTS = [
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The capital of {} is", "Japan", "Paris"),
]
CHECKS = parse_config("[checks.efficacy]\nlimit = 0.9\n[checks.canary_kl_mean]\nlimit = 0.02\n", "test.toml")
SETTINGS = {"target.steps": 3, "contexts.scheme": "none", "moments.multiple": 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rate", [3e-2, 3e-4])
@pytest.mark.filterwarnings("ignore::emendo.errors.EmendoWarning")
def test_written_is_what_is_in_the_model(dtype: torch.dtype, rate: float) -> None:
    lm = build_tiny(dtype=dtype)
    session = EditSession(lm)
    plan = session.plan(FACTS, "emmet", settings={**SETTINGS, "target.learning_rate": rate})
    (part,), (report,) = plan.update.layers, plan.layers
    assert part.keys is not None
    before = lm.weight(part.layer).double().clone()
    with session.applied(plan.update):
        delta = lm.weight(part.layer).double() - before
    given, wanted = part.keys.double() @ delta.T, part.residuals.double()
    assert report.achieved == pytest.approx(float((given * wanted).sum() / wanted.square().sum()), abs=1e-4)
    asked = part.at(part.keys)
    shares = (given * asked).sum(dim=1) / asked.square().sum(dim=1)
    assert report.kept == (None if dtype == torch.float32 else pytest.approx(float(shares.min()), abs=1e-4))
    assert plan.update.info["layers"][0]["achieved"] == report.achieved


@pytest.mark.parametrize("method", ["emmet", "ft-l"])
def test_an_edit_that_rounding_eats_is_told_with_the_remedy(method: str) -> None:
    lm = build_tiny(dtype=torch.bfloat16)
    trained = {"fine_tune.steps": 1, "fine_tune.learning_rate": 1e-5}
    small = {**SETTINGS, "target.learning_rate": 1e-5} if method == "emmet" else trained
    with pytest.warns(EmendoWarning, match=r"rounding to bfloat16 loses part of this edit.*--dtype float32"):
        plan = EditSession(lm).plan(FACTS, method, settings=small)
    assert min(report.kept or 0 for report in plan.layers) < 0.5


@pytest.mark.parametrize("as_file", [False, True])
def test_the_gate_judges_what_is_left_and_says_what_rounding_took(as_file: bool) -> None:
    """An edit that rounding eats whole does nothing: refused for that, with the reason and the remedy."""
    session, records = EditSession(build_tiny(dtype=torch.bfloat16)), [EditRecord(fact) for fact in FACTS]
    with pytest.warns(EmendoWarning, match="rounding to bfloat16"):
        plan = session.plan(FACTS, "emmet", settings={**SETTINGS, "target.learning_rate": 1e-7})
    (layer,) = plan.layers
    report = run_gate(session, plan.update if as_file else plan, records, CHECKS)
    assert report.kept == {layer.layer: pytest.approx(layer.kept, abs=1e-6)}
    assert report.kept[layer.layer] < 0.05
    measured = {check.name: check.measured for check in report.checks}
    assert measured["canary_kl_mean"] == pytest.approx(0, abs=1e-4), "what is left of it changes next to nothing"
    assert measured["efficacy"] == 0
    assert not report.passed
    with pytest.raises(GateError, match=r"rounding to bfloat16 loses part of this edit.*--dtype float32"):
        report.require()
    kept = with_report(plan, report).update.info["gate"]
    assert kept["kept"] == {str(layer.layer): report.kept[layer.layer]}
    assert kept["rounding"] == report.rounding


def test_the_gate_counts_all_updates_that_it_judges_together() -> None:
    """Three that the grid eats one by one may be more than a step of it together: they are written as their sum."""
    lm = build_tiny(dtype=torch.bfloat16)
    session = EditSession(lm)
    weight = lm.weight(1).float()
    step = weight.abs().max() * 2.0**-9  # less than half a step of the grid for the largest entries alone
    part = LayerUpdate(1, lm.module_name(1), torch.ones(1, weight.shape[0]), torch.ones(1, weight.shape[1]) * step / 2)
    updates: list[ModelUpdate] = []
    for _ in range(3):
        updates.append(ModelUpdate((part,), session.base, Predecessors.of(update.id for update in updates)))
    alone = run_gate(session, updates[0], [], CHECKS).kept[1]
    together = run_gate(session, updates, [], CHECKS).kept[1]
    with session.applied(updates[0]):
        session_of_one = lm.weight(1).float().clone()
    session.move_to(updates)
    given = (lm.weight(1).double() - weight.double()).flatten()
    asked = (3 * part.delta().double()).flatten()
    assert together == pytest.approx(float(given @ asked / (asked @ asked)), abs=1e-6)
    asked_alone = part.delta().double().flatten()
    given_alone = (session_of_one.double() - weight.double()).flatten()
    assert alone == pytest.approx(float(given_alone @ asked_alone / (asked_alone @ asked_alone)), abs=1e-6)
    assert run_gate(session, [], [], CHECKS).kept == {1: pytest.approx(together, abs=1e-6)}, "what the session holds"


def test_the_gate_says_nothing_of_rounding_where_there_is_none() -> None:
    session = EditSession(build_tiny())
    plan = session.plan(FACTS, "emmet", settings=SETTINGS)
    report = run_gate(session, plan, [EditRecord(fact) for fact in FACTS], CHECKS)
    assert (report.kept, report.rounding) == ({}, "")


def test_a_checkpoint_in_a_coarser_dtype_tells_what_it_loses(tmp_path: Path) -> None:
    lm = build_tiny()
    part = LayerUpdate(1, lm.module_name(1), torch.ones(1, 32), torch.ones(1, 48) * 1e-6)
    update = ModelUpdate((part,), lm.identity())
    with pytest.warns(EmendoWarning, match="rounding to bfloat16 loses part"):
        write_checkpoint(lm, [update], tmp_path / "coarse", dtype="bfloat16")


def test_an_edit_that_rounding_leaves_is_not_spoken_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmendoWarning)
        plan = EditSession(build_tiny()).plan(FACTS, "emmet", settings=SETTINGS)
    assert plan.layers[0].kept is None  # nothing finer to go to
