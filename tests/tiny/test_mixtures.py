"""Mixtures of experts as one edited map: what is recorded, counted, solved, written, taken back and exported."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.session import EditSession
from emendo.errors import InfeasibleError, MethodError, UnsupportedModelError
from emendo.models import EditableModel, wrap
from emendo.models.experts import RECORDING, RoutedKeys
from emendo.models.factored import factored
from emendo.models.hooks import Capture, recording
from emendo.requests import EditRequest
from emendo.solve import BlockMoment, Preservation, drift_over_price, prepare, solve
from emendo.statistics import ExpertSecondMoment, MomentSpec, MomentStore, collect_moments, obtain_moments
from emendo.updates import without
from emendo.updates.update import ModelUpdate
from tests.conftest import MIXTURES, build_tiny
from tests.model_state import changes, model_state

LAYER = 2
SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26]]
FACTS = [
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The capital of {} is", "Japan", "Bordeaux"),
    EditRequest("{}, a native speaker of", "Danielle Darrieux", "Tokyo"),
]
QUICK: dict[str, Any] = {"contexts.scheme": "fixed", "moments.multiple": 20, "target.steps": 3}
SEVERAL = ("qwen3_moe", "gpt_oss", "deepseek_v3")


@cache
def exact(family: str) -> EditableModel:
    """A float64 model for tests that leave it unchanged."""
    return build_tiny(family, dtype=torch.float64)


def logits(lm: EditableModel) -> Tensor:
    return lm.unembed(lm.final_hidden(lm.batch(SEQUENCES)))


# ---- recording -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MIXTURES)
def test_recording_is_the_models_own_computation(family: str) -> None:
    lm, every = exact(family), range(4)
    batch = lm.batch(SEQUENCES)
    with torch.no_grad():
        expected = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        capture = Capture()
        with lm.isolated() as own, recording(own, capture, keys=every, mlp_out=every):
            found = own.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    assert float((found - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))
    routed = [layer for layer in every if lm.mixture(layer) is not None]
    assert list(capture.routed) == routed
    assert len(routed) >= 3
    for layer in routed:
        keys, mixture = capture.routed[layer], lm.mixture(layer)
        assert mixture is not None
        assert (mixture.experts, mixture.width, mixture.chosen) == (6, 16, 2)
        assert keys.keys.shape == (3, 7, 2, 16)
        module = lm.down_projection(layer)
        bias = keys.bias(module.down_proj_bias) if module.has_bias else 0.0
        given = keys.stacked() @ lm.weight(layer).T + bias
        real = batch.attention_mask
        torch.testing.assert_close(given[real], capture.mlp_out[layer][real], rtol=0, atol=1e-12)


def test_recording_is_nobody_elses_business() -> None:
    """Neither the model's configuration nor a pass of another thread sees that keys are recorded."""
    lm = build_tiny("mixtral")
    before, expected, seen = model_state(lm), logits(lm), []
    batch = lm.batch(SEQUENCES)
    with lm.isolated() as own, recording(own, Capture(), keys=[LAYER]):
        modules = [module for module in lm.model.modules() if hasattr(module, "has_gate")]
        assert not any(module.config._experts_implementation == RECORDING for module in modules)
        assert own.down_projection(LAYER).config._experts_implementation == RECORDING
        assert own.down_projection(LAYER - 1).config._experts_implementation != RECORDING
        other = threading.Thread(target=lambda: seen.append(lm.unembed(lm.final_hidden(batch))))
        other.start()
        other.join()
    assert torch.equal(seen[0], expected)
    assert torch.equal(logits(lm), expected)
    assert changes(before, model_state(lm)) == []


def test_an_error_inside_a_recording_leaves_the_module_as_it_was() -> None:
    lm = build_tiny("olmoe")
    with lm.isolated() as own:
        module = own.down_projection(LAYER)
        config, names = module.config, set(vars(module))
        with pytest.raises(RuntimeError, match="stop"), recording(own, Capture(), keys=[LAYER]):
            raise RuntimeError("stop")
        assert module.config is config
        assert set(vars(module)) == names


def test_stacked_keys_selected_keys_and_products_are_the_same() -> None:
    lm = exact("mixtral")
    batch = lm.batch(SEQUENCES)
    capture = lm.run(batch, keys=[LAYER])
    rows, columns = torch.tensor([0, 2]), torch.tensor([4, 6])
    torch.testing.assert_close(capture.keys_at(LAYER, rows, columns), capture.keys[LAYER][rows, columns])
    assert LAYER not in lm.run(batch, keys=[LAYER], stacked=False).keys
    dual = torch.randn(3, lm.d_in(LAYER), dtype=torch.float64)
    torch.testing.assert_close(capture.routed[LAYER].dot(dual), capture.keys[LAYER] @ dual.T)


def test_factors_beside_the_weights_are_the_written_weights() -> None:
    lm = exact("gpt_oss")
    residuals, dual = torch.randn(2, lm.d_model).double(), torch.randn(2, lm.d_in(LAYER)).double() * 0.1
    batch = lm.batch(SEQUENCES[-1:])
    with lm.isolated() as own, torch.no_grad(), factored(own, {LAYER: (dual, residuals)}, torch.ones(1, 2)):
        found = own.unembed(own.decoder(input_ids=batch.input_ids).last_hidden_state)
    with lm.isolated({LAYER: lm.weight(LAYER) + residuals.T @ dual}) as written:
        expected = written.unembed(written.final_hidden(batch))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


# ---- second moments ----------------------------------------------------------------------------------------------


def naive(lm: EditableModel, sequences: list[list[int]], layer: int) -> tuple[Tensor, Tensor]:
    """Cₑ and the number of keys of every expert, from stacked keys."""
    mixture = lm.mixture(layer)
    assert mixture is not None
    keys = torch.cat([lm.run(lm.batch([ids]), keys=[layer]).keys[layer][0] for ids in sequences])
    parts = keys.view(-1, mixture.experts, mixture.width)
    return torch.einsum("tew,tev->ewv", parts, parts) / len(parts), (parts != 0).any(dim=2).sum(dim=0)


@pytest.mark.parametrize("family", SEVERAL)
def test_moments_are_those_of_the_stacked_keys(family: str, tmp_path: Path) -> None:
    lm, spec = exact(family), MomentSpec(tokens=300, length=64)
    moment = collect_moments(lm, [LAYER], spec)[LAYER]
    assert isinstance(moment, ExpertSecondMoment)
    sequences = [ids[:64] for ids in spec.corpus.sequences(lm, length=64, count=5)]
    sequences[-1] = sequences[-1][: 300 - 64 * 4]
    blocks, counts = naive(lm, sequences, LAYER)
    assert moment.count == 300
    assert torch.equal(moment.counts, counts)
    assert int(counts.sum()) == 600
    torch.testing.assert_close(moment.total / 300, blocks, rtol=0, atol=1e-12)
    assert moment.sample is not None
    assert moment.sample[0].shape == (256, 2, 16)


def test_moments_are_stored_resumed_and_merged(tmp_path: Path) -> None:
    lm, store = build_tiny("deepseek_v3"), MomentStore(tmp_path)
    spec = MomentSpec(tokens=200, length=64)
    first = obtain_moments(lm, [0, LAYER], spec, store)
    again = obtain_moments(lm, [0, LAYER], spec, store)
    assert [again[layer].cached for layer in (0, LAYER)] == [True, True]
    one, other = first[LAYER].moment, again[LAYER].moment
    assert isinstance(one, ExpertSecondMoment)
    assert isinstance(other, ExpertSecondMoment)
    assert torch.equal(one.total, other.total)
    assert torch.equal(one.counts, other.counts)
    assert one.sample is not None
    assert other.sample is not None
    assert all(map(torch.equal, one.sample, other.sample))
    assert first[0].mean().shape == (48, 48), "a dense layer of the same model"
    mean = first[LAYER].mean()
    assert isinstance(mean, BlockMoment)
    assert mean.name == "model.layers.2.mlp.experts"
    merged = one.merge(other)
    assert (merged.count, merged.counts.tolist()) == (400, (2 * one.counts).tolist())
    torch.testing.assert_close(merged.mean().blocks.sum(), one.mean().blocks.sum(), rtol=1e-2, atol=0)


def test_an_interrupted_collection_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emendo.statistics.collect.TOKEN_BUDGET", 64)
    lm, spec = build_tiny("qwen3_moe"), MomentSpec(tokens=300, length=64)
    whole = collect_moments(lm, [1, 3], spec)
    run, passes = lm.run, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    isolated = type(lm).run
    monkeypatch.setattr(type(lm), "run", lambda self, *args, **kwargs: failing(*args, **kwargs))
    with pytest.raises(KeyboardInterrupt):
        collect_moments(lm, [1, 3], spec, checkpoint=tmp_path, every=1)
    monkeypatch.setattr(type(lm), "run", isolated)
    resumed = collect_moments(lm, [1, 3], spec, checkpoint=tmp_path, every=1)
    for layer, moment in whole.items():
        assert torch.equal(moment.total, resumed[layer].total)
        assert moment.count == resumed[layer].count


# ---- edits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MIXTURES)
def test_equality_at_the_keys_of_a_real_mixture(family: str) -> None:
    """The change at every token of the pass, by the model itself: exactly R where it was asked for."""
    lm = exact(family)
    batch = lm.batch(SEQUENCES)
    before = lm.run(batch, keys=[LAYER], mlp_out=[LAYER])
    at = (torch.tensor([0, 1, 2]), torch.tensor([4, 2, 6]))
    keys = before.keys[LAYER][at]
    wanted = torch.randn(3, lm.d_model, generator=torch.Generator().manual_seed(0)).double()
    moment = collect_moments(lm, [LAYER], MomentSpec(tokens=600, length=64))[LAYER].mean()
    change = wanted.T @ solve(prepare(moment, Preservation()), keys, s=0).dual_keys
    with lm.isolated({LAYER: lm.weight(LAYER) + change}) as edited:
        after = edited.run(batch, mlp_out=[LAYER])
    found = after.mlp_out[LAYER][at] - before.mlp_out[LAYER][at]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["emendo", "emmet", "memit", "rome", "pmet"])
def test_methods_plan_apply_and_roll_back(method: str, store: MomentStore) -> None:
    lm = build_tiny("mixtral")
    before = model_state(lm)
    session = EditSession(lm, store=store)
    layers = [LAYER] if method == "rome" else [1, LAYER]
    distribution = {} if method in ("rome", "emendo", "memit", "pmet") else {"distribution": "even"}
    facts = FACTS[:1] if method == "rome" else FACTS
    plan = session.plan(facts, method, layers=layers, settings={**QUICK, **distribution})
    assert changes(before, model_state(lm)) == []
    for report in plan.layers:
        assert report.experts == 6
        assert 2 <= (report.experts_written or 0) <= 6
        assert report.drift_over_price is not None
        assert 0 < report.drift_over_price < 2
        assert report.achieved == pytest.approx(1.0, abs=1e-3) or method not in ("emendo", "emmet")
    session.apply(plan)
    assert changes(before, model_state(lm)) == ["weights"]
    session.rollback()
    assert changes(before, model_state(lm)) == []
    assert all(session.verify_rolled_back().values())


@pytest.mark.parametrize("family", SEVERAL)
def test_a_plan_with_history_a_file_and_its_undo(family: str, tmp_path: Path, store: MomentStore) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    session = EditSession(lm, store=store)
    plans = []
    for fact in FACTS:
        plans.append(session.plan([fact], "emendo", layers=[LAYER], settings=QUICK).update)
        session.apply(plans[-1])
    path = plans[0].save(tmp_path / "u.safetensors")
    assert ModelUpdate.load(path).id == plans[0].id
    (part,) = plans[0].layers
    assert path.stat().st_size < 0.9 * 4 * (part.dual_keys.numel() * 2 + part.residuals.numel()) + 20_000
    config = session.resolve("emendo", layers=[LAYER], settings=QUICK).config
    metrics = session.preservation(config)  # type: ignore[arg-type]
    fingerprint = plans[0].info["moments"]["fingerprint"]
    assert [update.id for update in without(plans, 2, metrics, fingerprint=fingerprint)] == [
        update.id for update in plans[:2]
    ]
    left = without(plans, 0, metrics, fingerprint=fingerprint)
    # Taken out, the first edit no longer gives the second its part of what the second wants at its own key.
    first, second, anew = plans[0].layers[0], plans[1].layers[0], left[0].layers[0]
    assert second.keys is not None
    wanted = first.at(second.keys) + second.at(second.keys)
    torch.testing.assert_close(anew.at(second.keys), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    session.move_to(list(left))
    session.rollback()
    assert all(session.verify_rolled_back().values())


def test_a_starved_expert_is_refused_by_name_before_the_search(store: MomentStore) -> None:
    session = EditSession(build_tiny("mixtral"), store=store)
    settings = {**QUICK, "moments.multiple": 0.1, "preservation.ridge": 1e-3}
    with pytest.raises(InfeasibleError, match=r"model\.layers\.2\.mlp\.experts: .*expert \d \(\d keys; .*multiple=40"):
        session.plan(FACTS, "emmet", layers=[LAYER], settings=settings)
    session.plan(FACTS, "memit", layers=[LAYER], settings=settings)  # least squares takes it


@pytest.mark.parametrize("family", SEVERAL)
def test_a_plan_in_half_precision(family: str, store: MomentStore) -> None:
    """Gates times keys are not rounded to the model's dtype, and neither are the factors."""
    lm = build_tiny(family, dtype=torch.bfloat16)
    keys = lm.run(lm.batch(SEQUENCES), keys=[LAYER]).keys[LAYER]
    assert keys.dtype == torch.float32
    plan = EditSession(lm, store=store).plan(FACTS, "emmet", layers=[LAYER], settings=QUICK)
    (part,), (report,) = plan.update.layers, plan.layers
    assert not torch.equal(part.dual_keys, part.dual_keys.bfloat16().float())
    assert report.achieved == pytest.approx(1.0, abs=0.02)


REFUSED = {
    "alphaedit": "null space of its own size",
    "ft": "trains one linear map",
    "lora": "trains one linear map",
    "rect": "post.kind=rect",
    "prune": "singular values of all experts",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_of_experts_is_refused_with_the_reason(name: str, store: MomentStore) -> None:
    session = EditSession(build_tiny("deepseek_v3"), store=store)
    method, settings = (name, {}) if name in ("alphaedit", "ft", "lora") else ("memit", {"post.kind": name})
    with pytest.raises(MethodError, match=REFUSED[name]):
        session.resolve(method, layers=[LAYER], settings=settings)
    session.resolve(method, layers=[0], settings=settings)  # a dense layer of the same model


def test_drift_is_measured_on_keys_as_they_were_routed() -> None:
    generator = torch.Generator().manual_seed(0)
    lm = exact("mixtral")
    moment = collect_moments(lm, [LAYER], MomentSpec(tokens=200, length=64))[LAYER].mean()
    assert isinstance(moment, BlockMoment)
    assert moment.sample is not None
    R, Q = torch.randn(2, 5, generator=generator).double(), torch.randn(2, 96, generator=generator).double()
    ones = torch.ones(len(moment.sample.keys), 2, dtype=torch.float64)
    phi = RoutedKeys(moment.sample.keys, ones, moment.sample.experts, 6).stacked()
    whole = ((phi @ Q.T) @ R).square().sum(dim=1).mean()
    parts = phi.view(-1, 6, 16)
    blocks = torch.einsum("tew,oew->teo", parts, (R.T @ Q).view(5, 6, 16)).square().sum(dim=(1, 2)).mean()
    assert drift_over_price(R, Q, moment) == pytest.approx(float(whole / blocks), rel=1e-6)
    assert drift_over_price(R, Q, replace(moment, sample=None)) is None


def test_experts_that_cannot_be_edited_are_refused() -> None:
    lm = build_tiny("mixtral")
    lm.down_projection(1).has_post_expert_norm = True
    with pytest.raises(UnsupportedModelError, match="norms the output of every expert"):
        wrap(lm.model, lm.tokenizer)
    lm = build_tiny("mixtral", dtype=torch.float64)
    lm.model.set_experts_implementation("grouped_mm")
    with pytest.raises(UnsupportedModelError, match=r'set_experts_implementation\("eager"\)'):
        wrap(lm.model, lm.tokenizer)
