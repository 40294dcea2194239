"""The gate on tiny models: it measures what it says, leaves no trace, and keeps a failing edit out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import emendo.evaluate.snapshot as snapshot_module
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.errors import BaseMismatchError, GateConfigError, GateError, InputError, NumericalError
from emendo.evaluate import evaluate_records, measure_drift, next_token_log_probs, packaged_text, perplexity
from emendo.gate import read_canaries, run_gate, with_report
from emendo.gate.config import parse_config
from emendo.requests import EditRecord
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.pairs import pairs
from tests.quick_plans import EIFFEL, JAPAN, quick_plan
from tests.tiny.gate_cases import EVERYTHING, RECORDS, found, gate_of, heavy, only


@pytest.fixture
def plan(session: EditSession) -> Plan:
    return quick_plan(session, [EIFFEL, JAPAN])


# ---- what is measured ----------------------------------------------------------------------------------------


def test_measurements_are_those_of_the_library(session: EditSession, plan: Plan) -> None:
    report = run_gate(session, plan, RECORDS, EVERYTHING)
    values = {check.name: check for check in report.checks}
    lm, canaries = session.lm, read_canaries(["packaged"]).prompts
    neighbors = [prompt for record in RECORDS for prompt in record.neighborhood_prompts]

    def seen() -> tuple[Any, ...]:
        asked = next_token_log_probs(lm, canaries), next_token_log_probs(lm, neighbors)
        return evaluate_records(lm, RECORDS), *asked, perplexity(lm, packaged_text()).value

    scores, canary, neighbor, text = seen()
    with session.applied(plan.update):
        after, canary_after, neighbor_after, text_after = seen()
    shift = measure_drift(canary, canary_after)
    lost = [
        (old.target_true.argmax, new.target_true.argmax)
        for was, now in zip(scores.records, after.records, strict=True)
        for old, new in zip(was.neighborhood, now.neighborhood, strict=True)
    ]
    held = [now for was, now in lost if was]
    expected = {
        "efficacy": after.scores.EA / 100,
        "paraphrase": after.scores.PS / 100,
        "neighborhood_flips": float((neighbor.top != neighbor_after.top).double().mean()),
        "neighborhood_lost": held.count(False) / len(held) if held else None,
        "canary_kl_mean": shift.mean,
        "canary_kl_p99": shift.p99,
        "canary_moved": sum(kl > 0.1 for kl in shift.kl) / len(canaries),
        "canary_flips": shift.flips,
        "perplexity_ratio": text_after / text,
        "norm_growth": max(layer.relative_norm for layer in plan.layers),
        "relative_cost": max(layer.relative_cost or 0 for layer in plan.layers),
    }
    for name, value in expected.items():
        assert values[name].measured == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-9)), name
    assert values["canary_flips"].n == len(canaries)
    assert values["neighborhood_flips"].n == 3
    assert report.updates == (plan.update.id,)
    assert expected["canary_kl_mean"] > 0
    assert torch.is_grad_enabled()  # comparing distributions must not leave gradients switched off


@pytest.mark.parametrize(
    "name", ["canary_kl_mean", "canary_kl_p99", "canary_flips", "perplexity_ratio", "norm_growth", "relative_cost"]
)
def test_each_check_fails_once_its_limit_is_below_what_is_measured(name: str, session: EditSession, plan: Plan) -> None:
    value = found(session, plan, only(name, 1e9 if name not in ("canary_flips",) else 1)).measured
    assert value is not None
    assert value > 0
    assert found(session, plan, only(name, value)).passed  # measuring again gives the same number
    assert not found(session, plan, only(name, value * (1 - 1e-6))).passed


@pytest.mark.parametrize("success", ["argmax", "beats_true", "generated"])
def test_efficacy_counts_requests(success: str, session: EditSession, plan: Plan) -> None:
    more = f'success = "{success}"'
    check = found(session, plan, only("efficacy", 0, more))
    with session.applied(plan.update):
        scores = evaluate_records(session.lm, RECORDS).scores
        said = [session.lm.generate(record.request.text, 12).split()[0] for record in RECORDS]
    hits = sum(word.strip(".,") == r.request.target for word, r in zip(said, RECORDS, strict=True))
    expected = {"argmax": scores.EA / 100, "beats_true": scores.ES / 100, "generated": hits / 2}[success]
    assert check.measured == pytest.approx(expected)
    assert check.n == 2


def test_what_records_do_not_have_is_not_measured(session: EditSession, plan: Plan) -> None:
    bare = [EditRecord(EIFFEL), EditRecord(JAPAN)]
    report = run_gate(session, plan, bare, EVERYTHING)
    outcomes = {check.name: check.outcome for check in report.checks}
    for name in ("paraphrase", "neighborhood_flips", "neighborhood_lost"):
        assert outcomes[name] == "not measured, pass"
        assert not found(session, plan, only(name, 0.5), bare).passed  # "fail" unless the file says otherwise
    assert not found(session, plan, only("efficacy", 0, 'success = "beats_true"'), bare).passed
    assert not found(session, plan, only("efficacy", 0), []).passed
    loose = gate_of("[checks.norm_growth]\nlimit = 9\n[checks.paraphrase]\nlimit = 1\nunmeasured = 'pass'")
    assert run_gate(session, plan, bare, loose).summary().endswith("not measured: paraphrase")


def test_requests_without_a_true_target_are_left_out_by_name(session: EditSession, plan: Plan) -> None:
    records = [RECORDS[0], EditRecord(JAPAN)]
    check = found(session, plan, only("efficacy", 0, 'success = "beats_true"'), records)
    assert check.n == 1
    assert "1 without target_true left out" in check.words


def test_norm_and_cost_are_those_of_the_dense_total(session: EditSession) -> None:
    first = quick_plan(session, [EIFFEL])
    session.apply(first.update)
    second = quick_plan(session, [JAPAN])
    config = gate_of("[checks.norm_growth]\nlimit = 9\n[checks.relative_cost]\nlimit = 9")
    report = run_gate(session, second, RECORDS, config)
    session.rollback()
    moments, _ = session.second_moments([change.layer for change in report.layers], second.method.config.moments)
    for change in report.layers:
        parts = [part for part in (*first.update.layers, *second.update.layers) if part.layer == change.layer]
        total = torch.stack([part.residuals.double().T @ part.dual_keys.double() for part in parts]).sum(dim=0)
        weight, moment = session.lm.weight(change.layer).double(), moments[change.layer]
        assert change.norm_growth == pytest.approx(float(total.norm() / weight.norm()), rel=1e-9)
        cost = torch.trace(total @ moment @ total.T) / torch.trace(weight @ moment @ weight.T)
        assert change.relative_cost == pytest.approx(float(cost), rel=1e-9)
    largest = max(change.norm_growth for change in report.layers)
    assert report.checks[0].measured == largest


# ---- what it is compared with --------------------------------------------------------------------------------


def test_reference_is_the_base_or_the_present_model(session: EditSession) -> None:
    first = heavy(session, 0.3)
    session.apply(first)
    second = heavy(session, 0.001, (first.id,), layer=2)
    base = found(session, second, only("perplexity_ratio", 99, reference="base")).measured
    current = found(session, second, only("perplexity_ratio", 99, reference="current")).measured
    present = perplexity(session.lm, packaged_text()).value
    with session.applied(second):
        after = perplexity(session.lm, packaged_text()).value
    session.rollback()
    before = perplexity(session.lm, packaged_text()).value
    assert base == pytest.approx(after / before, rel=1e-9)
    assert current == pytest.approx(after / present, rel=1e-9)
    assert abs(current - 1) < abs(base - 1)


def test_several_updates_are_judged_together_and_so_is_what_the_session_holds(session: EditSession) -> None:
    first = heavy(session, 0.1)
    second = heavy(session, 0.2, (first.id,))
    config = only("norm_growth", 9)
    together = found(session, [first, second], config)
    assert together.measured == pytest.approx(0.3, rel=1e-6)  # the same direction
    session.apply(first)
    session.apply(second)
    assert found(session, [], config).measured == together.measured
    with pytest.raises(InputError, match="no edit to judge"):
        run_gate(session, [], RECORDS, only("norm_growth", 9, reference="current"))
    session.rollback()
    with pytest.raises(InputError, match="no edit to judge"):
        run_gate(session, [], RECORDS, config)
    with pytest.raises(BaseMismatchError):
        run_gate(session, second, RECORDS, config)


def test_a_baseline_has_no_second_moment_and_in_context_no_weights(session: EditSession) -> None:
    plan = session.plan([EIFFEL], "in-context")
    report = run_gate(session, plan, RECORDS[:1], EVERYTHING)
    values = {check.name: check for check in report.checks}
    assert values["norm_growth"].measured == values["relative_cost"].measured == 0
    assert values["canary_kl_mean"].measured == 0
    with session.applied(heavy(session, 0.1)):
        check = found(session, [], only("relative_cost", 9))
    assert check.outcome == "not measured, fail"
    assert "names no second moment" in check.words


def test_an_update_is_priced_by_the_second_moment_that_its_record_names(session: EditSession, plan: Plan) -> None:
    config = only("relative_cost", 9)
    assert found(session, plan.update, config) == found(session, plan, config)
    assert found(session, plan, config).measured == max(layer.relative_cost or 0 for layer in plan.layers)


def test_a_file_does_not_get_to_name_texts_that_are_read(session: EditSession) -> None:
    update = heavy(session, 0.1)
    for source in ("hf:somebody/corpus", "/etc/passwd", "0.7*self+0.3*/etc/passwd", "1*", ""):
        settings = {"moments.source": source, "moments.multiple": 4, "moments.exclude_first": False}
        named = replace(update, info={"method": {"settings": settings}})
        assert "not read for a file" in found(session, named, only("relative_cost", 9)).words
    own = {"moments.source": "0.7*self+0.3*kinds", "moments.multiple": 4, "moments.exclude_first": False}
    assert found(session, replace(update, info={"method": {"settings": own}}), only("relative_cost", 9)).measured
    for info in ({"method": 3}, {"method": {"settings": {"moments.source": 3}}}, {"method": {"settings": [1]}}):
        assert not found(session, replace(update, info=info), only("relative_cost", 9)).passed


# ---- no trace ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "held"), pairs([torch.float32, torch.bfloat16], [0, 1]))
def test_a_failed_gate_leaves_no_trace(dtype: torch.dtype, held: int, store: MomentStore) -> None:
    session = EditSession(build_tiny("gpt2", dtype=dtype), store=store)
    if held:
        session.apply(heavy(session, 0.01))
    before = model_state(session.lm)
    report = run_gate(session, heavy(session, 2.0, layer=2), RECORDS, EVERYTHING)
    assert not report.passed
    assert changes(before, model_state(session.lm)) == []
    assert len(session.applied_updates) == held
    session.rollback()
    assert all(session.verify_rolled_back().values())


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_an_exception_in_mid_gate_leaves_no_trace(
    fails_at: int, session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.apply(heavy(session, 0.01))
    update = heavy(session, 0.5, layer=2)
    before = model_state(session.lm)
    calls = 0

    def failing(function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return wrapped

    for name in ("score_records", "packaged_perplexity"):
        monkeypatch.setattr(snapshot_module, name, failing(getattr(snapshot_module, name)))
    with pytest.raises(KeyboardInterrupt):
        run_gate(session, update, RECORDS, EVERYTHING)
    assert calls == fails_at
    assert changes(before, model_state(session.lm)) == []
    assert len(session.applied_updates) == 1


def test_an_edit_that_breaks_the_model_fails_every_check(
    session: EditSession, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_state(session.lm)
    states: list[str] = []

    def next_tokens(lm: Any, *args: Any, **kwargs: Any) -> Any:
        states.append("edited" if lm.holds_edits else "base")
        if lm.holds_edits:
            raise NumericalError("the logits are not finite")
        return next_token_log_probs(lm, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(snapshot_module, "next_token_log_probs", next_tokens)
        report = run_gate(session, plan, RECORDS, EVERYTHING)
    assert states == ["base", "base", "edited"]
    assert len(report.failures) == len(report.checks) == len(type(EVERYTHING.checks).model_fields)
    assert all("the edit breaks the model" in check.words for check in report.checks)
    assert changes(before, model_state(session.lm)) == []
    overflowing = replace(plan.update.layers[0], residuals=plan.update.layers[0].residuals * 1e38 * 1e4)
    report = run_gate(session, ModelUpdate((overflowing,), session.base), RECORDS, only("norm_growth", 1e300))
    assert not report.passed
    assert changes(before, model_state(session.lm)) == []


# ---- what is recorded ----------------------------------------------------------------------------------------


def test_the_report_travels_with_the_update(session: EditSession, plan: Plan, tmp_path: Path) -> None:
    report = run_gate(session, plan, RECORDS, only("norm_growth", 0))
    with pytest.raises(GateError, match="norm_growth"):
        report.require()
    recorded = with_report(plan, report.override()).update
    assert recorded.id == plan.update.id
    loaded = ModelUpdate.load(recorded.save(tmp_path / "update.safetensors"))
    assert loaded.info["gate"] == json.loads(json.dumps(report.override().to_dict()))
    assert loaded.info["gate"]["forced"] is True
    assert loaded.info["gate"]["checks"][0]["margin"] < 0
    assert report.not_declared == tuple(n for n in type(EVERYTHING.checks).model_fields if n != "norm_growth")
    again = run_gate(session, plan, RECORDS, only("norm_growth", 0))
    assert again.to_dict() == report.to_dict()  # no times


def test_own_canaries_are_named_by_their_content(session: EditSession, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Our refund policy is"}\n')
    text = '[checks.canary_flips]\nlimit = 1\n[canaries]\nfiles = ["mine.jsonl"]\n'
    report = run_gate(session, plan, RECORDS, parse_config(text, "x", tmp_path))
    assert report.checks[0].n == 1
    assert list(report.canaries) == ["mine.jsonl"]
    (tmp_path / "mine.jsonl").write_text("")
    with pytest.raises(GateConfigError):
        run_gate(session, plan, RECORDS, parse_config(text, "x", tmp_path))
