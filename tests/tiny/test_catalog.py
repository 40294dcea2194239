"""Every named method on several families: a plan leaves no trace, an update goes in and comes out, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.session import EditSession
from emendo.methods import METHODS, method_named
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.naive_loop import apart, close
from tests.pairs import pairs
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, REQUESTS, planned

FAMILIES = ("gemma2", "gpt2_square", "gptj", "llama")
OPEN: dict[str, Any] = {"preservation__null_space": "energy", "preservation__threshold": 0.3}
"""AlphaEdit's absolute threshold leaves nothing open in these models."""


def settings_of(method: str) -> dict[str, Any]:
    return OPEN if method == "alphaedit" else {}


def weights_of(lm: EditableModel) -> list[Tensor]:
    return [lm.weight(layer).clone() for layer in range(lm.n_layers)]


# ---- the whole way of an update -------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "family"), pairs(list(METHODS), FAMILIES))
def test_plan_apply_save_and_roll_back(method: str, family: str, store: MomentStore, tmp_path: Path) -> None:
    lm, given = build_tiny(family), settings_of(method)
    clean, base, session = model_state(lm), weights_of(lm), EditSession(lm, store=store)
    plan = planned(session, store, REQUESTS, method, **given)
    assert changes(clean, model_state(lm)) == []
    other = planned(build_tiny(family), store, REQUESTS, method, **given)
    assert other.update.id == plan.update.id, "the same seed, the same update"
    session.apply(plan.update)
    edited, states = weights_of(lm), model_state(lm)
    assert changes(clean, states) == ["weights"]
    for part in plan.update.layers:
        expected = part.delta() + base[part.layer]
        assert torch.equal(edited[part.layer], expected), "written once, in float32"
    second = planned(session, store, [replace(EIFFEL, target="Bordeaux")], method, **given)
    assert changes(states, model_state(lm)) == [], "a plan on top of an edit leaves no trace either"
    session.apply(second.update)
    session.rollback()
    assert changes(clean, model_state(lm)) == []
    loaded = ModelUpdate.load(plan.update.save(tmp_path / "update.safetensors"))
    assert (loaded.id, loaded.info) == (plan.update.id, plan.update.info)
    session.apply(loaded)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(lm), edited, strict=True))
    session.apply(second.update)  # the file is the update that this one was planned on


@pytest.mark.parametrize("method", ["emendo", "memit-history", "rome"])
def test_the_seed_reaches_sampled_contexts_and_moments(method: str, store: MomentStore) -> None:
    lm, given = build_tiny("llama"), {**settings_of(method), "contexts__scheme": "memit"}
    ids = [
        planned(EditSession(lm, store=store, seed=seed), store, [EIFFEL], method, **given).update.id
        for seed in (3, 3, 4)
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_what_it_reports(method: str, store: MomentStore) -> None:
    """Equality gives all of a residual, least squares a part, and each report is of a layer that is written."""
    plan = planned(build_tiny("llama"), store, [JAPAN], method, **settings_of(method))
    config = plan.method.config
    assert tuple(report.layer for report in plan.layers) == config.written_layers
    for part, report in zip(plan.update.layers, plan.layers, strict=True):
        assert report.update_norm == pytest.approx(float(part.delta().norm()), rel=1e-4)
        assert part.keys is not None
        if config.memorization.strength(1) == 0:
            assert report.achieved == pytest.approx(1.0, rel=1e-4)
        elif config.post.kind == "none":
            assert 0 < report.achieved < 1
            assert report.achieved == pytest.approx(report.solves[0].memorized, rel=1e-4)


# ---- half precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_weights_have_an_update_in_float32(method: str, store: MomentStore) -> None:
    """Factors of float32 accuracy, summed with the weights in float32, and rounded once."""
    given = settings_of(method)
    lm = build_tiny("llama", dtype=torch.bfloat16)
    clean, session = model_state(lm), EditSession(lm, store=store)
    base = weights_of(lm)
    plans = []
    for batch in ([EIFFEL], [DARRIEUX]):
        before = model_state(lm)
        plans.append(planned(session, store, batch, method, **given))
        assert changes(before, model_state(lm)) == []
        session.apply(plans[-1].update)
    for layer, weight in enumerate(base):
        exact = weight.float()
        for plan in plans:
            for part in plan.update.layers:
                if part.layer == layer:
                    tensors = part.tensors.values()
                    assert all(tensor.dtype == torch.float32 for tensor in tensors)
                    assert not torch.equal(part.dual_keys, part.dual_keys.bfloat16().float()), "not rounded to bfloat16"
                    exact += part.delta()
        assert torch.equal(lm.weight(layer), exact.bfloat16())
    session.rollback()
    assert changes(clean, model_state(lm)) == []


@pytest.mark.parametrize("method", ["emmet", "memit", "emendo"])
def test_a_bfloat16_model_is_solved_as_exactly_as_any(method: str, store: MomentStore) -> None:
    """Q K^T of the stored factors and keys is what float64 gives; rounding to bfloat16 anywhere would show."""
    lm = build_tiny("llama", dtype=torch.bfloat16)
    # Under equality without history the weight would change nothing, and is refused.
    given = {} if method == "emmet" else {"preservation__weight": 0.5}
    plan = planned(lm, store, [EIFFEL, JAPAN], method, [1], **given)
    (part,) = plan.update.layers
    assert part.keys is not None
    K, Q = part.keys.double(), part.dual_keys.double()
    system = Q @ K.T
    if plan.method.config.memorization.s == 0:
        close(system, torch.eye(2), 1e-5)
    else:
        assert plan.layers[0].solves[0].memorized == pytest.approx(float(system.trace()) / 2, rel=1e-6)
    rounded = Q.bfloat16().double() @ K.T
    assert apart(rounded, system) > 1e-4


def test_a_bfloat16_model_is_summed_up_before_it_is_rounded(store: MomentStore) -> None:
    """One by one, the third request sees W₀ + Δ₁ + Δ₂ rounded once, as a session writes it."""
    lm = build_tiny("llama", dtype=torch.bfloat16)
    batch = planned(lm, store, REQUESTS, "r-rome", [1], contexts__scheme="none")
    session = EditSession(build_tiny("llama", dtype=torch.bfloat16), store=store)
    for row, request in enumerate(REQUESTS):
        alone = planned(session, store, [request], "r-rome", [1], contexts__scheme="none")
        close(batch.update.layers[0].residuals[row], alone.update.layers[0].residuals[0], 1e-6)
        session.apply(alone.update)


def test_method_names_are_those_of_the_issue() -> None:
    named = "rome r-rome memit emmet emmet-published pmet alphaedit memit-history encore rect prune blue replay emendo"
    assert set(METHODS) == {*named.split(), "memit-merge"}
    assert all(method_named(name).source for name in METHODS)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
