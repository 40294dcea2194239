"""The monitor of sequential editing: its signals are what they say, and it warns before a collapsing model is lost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import emendo.gate.monitor as monitor_module
from emendo.editing.session import EditSession
from emendo.errors import InputError, NumericalError
from emendo.evaluate import measure_drift, next_token_log_probs
from emendo.gate import CollapseMonitor, GateConfig, read_canaries
from emendo.gate.config import MonitorConfig
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers
from tests.conftest import TRAINING_TEXT
from tests.model_state import changes, model_state
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK, quick_plan

ALL = GateConfig(
    monitor=MonitorConfig(norm_growth=9, relative_cost=9, interference=9, canary_kl_mean=9, canary_flips=1)
)


def drift(session: EditSession, step: int, size: float, layer: int = 2) -> ModelUpdate:
    """One edit of a collapsing sequence: rank one, always nearly the same direction, so that what fails is the sum."""
    weight = session.lm.weight(layer)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(1, width, generator=generator) for width in weight.shape)
    noise = torch.Generator().manual_seed(step)
    left = left + 0.1 * torch.randn(left.shape, generator=noise)
    left *= size * float(weight.norm()) / float(left.norm() * right.norm())
    keys = right / right.norm()
    part = LayerUpdate(layer, session.lm.module_name(layer), left, right, keys)
    return ModelUpdate((part,), session.base, Predecessors.of(session.applied_ids))


def test_signals_are_those_of_the_library(session: EditSession) -> None:
    monitor = CollapseMonitor(session, ALL)
    prompts = read_canaries(["packaged"]).prompts
    base = next_token_log_probs(session.lm, prompts)
    plans = []
    for request in (EIFFEL, JAPAN, DARRIEUX):
        plans.append(quick_plan(session, [request], "emmet"))
        session.apply(plans[-1].update)
        assert monitor.observe(plans[-1]) == []
    shift = measure_drift(base, next_token_log_probs(session.lm, prompts))
    first, _, last = monitor.history
    assert [seen.updates for seen in monitor.history] == [1, 2, 3]
    assert first.norm_growth == pytest.approx(max(layer.relative_norm for layer in plans[0].layers), rel=1e-9)
    assert first.relative_cost == pytest.approx(max(layer.relative_cost or 0 for layer in plans[0].layers), rel=1e-9)
    assert first.interference is None  # there was nothing to disturb
    assert last.interference == pytest.approx(max(layer.interference or 0 for layer in plans[2].layers), rel=1e-9)
    assert (last.canary_kl_mean, last.canary_flips) == (shift.mean, shift.flips)
    total: dict[int, torch.Tensor] = {}
    for plan in plans:
        for part in plan.update.layers:
            total[part.layer] = total.get(part.layer, 0) + part.delta().double()
    session.rollback()
    growth = [float(delta.norm() / session.lm.weight(layer).double().norm()) for layer, delta in total.items()]
    assert last.norm_growth == pytest.approx(max(growth), rel=1e-6)


@pytest.mark.parametrize("shared", ["key", "request"])
def test_facts_that_a_new_value_keeps_are_not_disturbed(shared: str, session: EditSession) -> None:
    monitor = CollapseMonitor(session, ALL)
    settings = {**QUICK, "target.shared": shared}
    for request in (EIFFEL, JAPAN, replace(EIFFEL, prompt="{} was built in", target="Tokyo")):
        plan = session.plan([request], "emmet", settings=settings)
        session.apply(plan)
        monitor.observe(plan)
    update = plan.update.layers[0]
    earlier = merge_layers([edit.layers[0] for edit in session.applied_updates[:2]])[0]
    assert earlier.keys is not None
    keys = earlier.keys[1:] if shared == "key" else earlier.keys
    share = float(update.at(keys).norm() / earlier.at(keys).norm())
    assert monitor.history[-1].interference == pytest.approx(share, rel=1e-6)


def test_a_warning_comes_before_the_harm(session: EditSession) -> None:
    """Small edits that add up: by the time half of the plain prompts are continued differently, it has warned."""
    limits = MonitorConfig(norm_growth=0.3, canary_kl_mean=0.05, canary_flips=0.1)
    monitor = CollapseMonitor(session, GateConfig(monitor=limits))
    prompts = [text[:length] for text in TRAINING_TEXT for length in (12, 20, 28)]
    before = next_token_log_probs(session.lm, prompts).top
    warned: dict[str, int] = {}
    harmed = None
    for step in range(1, 21):
        update = drift(session, step, 0.05)
        session.apply(update)
        for warning in monitor.observe(update):
            warned.setdefault(warning.signal, step)
        lost = float((next_token_log_probs(session.lm, prompts).top != before).double().mean())
        if lost >= 0.5:
            harmed = step
            break
    assert harmed is not None, "the run does collapse"
    for signal in ("norm_growth", "canary_kl_mean", "canary_flips"):
        assert 1 < warned[signal] < harmed, (warned, harmed)


def test_a_harmless_sequence_gives_no_warning(session: EditSession) -> None:
    monitor = CollapseMonitor(session)  # the packaged limits
    for layer in range(session.lm.n_layers):
        update = drift(session, 1, 1e-5, layer)
        session.apply(update)
        assert monitor.observe(update) == []


def test_limits_pass_at_their_value_and_warn_above(session: EditSession) -> None:
    update = drift(session, 1, 0.2)
    session.apply(update)

    def warnings(limit: float) -> list[Any]:
        return CollapseMonitor(session, GateConfig(monitor=MonitorConfig(norm_growth=limit))).observe(update)

    probe = CollapseMonitor(session, GateConfig(monitor=MonitorConfig(norm_growth=9)))
    probe.observe(update)
    value = probe.history[0].norm_growth
    assert value is not None
    assert warnings(value) == []
    (warning,) = warnings(math.nextafter(value, 0))
    assert (warning.signal, warning.measured, warning.updates) == ("norm_growth", value, 1)
    assert "after 1 update(s) norm_growth is 0.2" in str(warning)


def test_looking_leaves_no_trace(session: EditSession) -> None:
    session.apply(drift(session, 1, 0.1))
    before = model_state(session.lm)
    monitor = CollapseMonitor(session, ALL)  # made in mid-sequence: it still compares with the unedited model
    assert changes(before, model_state(session.lm)) == []
    monitor.observe(session.applied_updates[-1])
    assert changes(before, model_state(session.lm)) == []
    assert len(session.applied_updates) == 1
    seen = monitor.history[0]
    assert seen.canary_kl_mean is not None
    assert seen.canary_kl_mean > 0


def test_a_model_without_finite_numbers_is_a_warning_and_no_crash(
    session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = CollapseMonitor(session, ALL)
    update = drift(session, 1, 0.1)
    session.apply(update)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise NumericalError("not finite")

    monkeypatch.setattr(monitor_module, "next_token_log_probs", broken)
    (warning,) = monitor.observe(update)
    assert (warning.signal, warning.measured) == ("canary_kl_mean", math.inf)
    assert monitor.history[0].canary_flips == 1.0


def test_misuse_is_refused(session: EditSession) -> None:
    with pytest.raises(InputError, match="nothing would be watched"):
        CollapseMonitor(session, GateConfig())
    monitor = CollapseMonitor(session, ALL)
    first = drift(session, 1, 0.01)
    with pytest.raises(InputError, match="before observe"):
        monitor.observe(first)
    session.apply(first)
    session.apply(drift(session, 2, 0.01))
    with pytest.raises(InputError, match="before observe"):
        monitor.observe(first)
    assert monitor.history == []
