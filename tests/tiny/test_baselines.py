"""Baselines: the edit takes, the bound holds, the factors are what was trained, and the model is as it was."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.baselines import lora, training
from emendo.editing.baselines.fit import fit_baseline
from emendo.errors import ConflictError, InputError, LayerError, MethodError, NumericalError, RequestError
from emendo.evaluate import evaluate_records
from emendo.methods import BASELINES, BaselineConfig, apply_settings, method_named, resolve_method
from emendo.methods.baselines import InContextSettings, LoraSettings
from emendo.methods.in_context import in_context_records
from emendo.models import EditableModel
from emendo.models.alignment import align_prompt
from emendo.requests import EditRecord, EditRequest, Probe
from emendo.updates.update import LayerUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.pairs import pairs

EIFFEL = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
DARRIEUX = EditRequest("{}, a native speaker of", "Danielle Darrieux", "Tokyo, Japan")
REQUESTS = [EIFFEL, DARRIEUX]

FREE: dict[str, Any] = {"fine_tune.steps": 60, "fine_tune.learning_rate": 0.03}
LORA: dict[str, Any] = {"lora.steps": 60, "lora.learning_rate": 0.02}
SHORT: dict[str, dict[str, Any]] = {
    "ft": {"fine_tune.steps": 3},
    "ft-l": {"fine_tune.steps": 3},
    "lora": {"lora.steps": 3},
}
TRAINED = sorted(SHORT)


def configured(name: str, settings: dict[str, Any] | None = None) -> BaselineConfig:
    return apply_settings(method_named(name), settings or SHORT.get(name, {}))


def logits(lm: EditableModel, text: str) -> Tensor:
    return lm.unembed(lm.final_hidden(lm.batch([lm.encode(text)])))


def edited_weights(lm: EditableModel, updates: tuple[LayerUpdate, ...]) -> dict[int, Tensor]:
    return {
        part.layer: lm.weight(part.layer).to(torch.promote_types(lm.dtype, torch.float32)) + part.delta()
        for part in updates
    }


# ---- the edit takes ------------------------------------------------------------------------------------------


TRAINING = {"ft": FREE, "lora": LORA}
LAYOUTS = [("llama", torch.float32), ("gpt2", torch.float32), ("gpt2_square", torch.float32), ("llama", torch.bfloat16)]


@pytest.mark.parametrize(("model", "name"), pairs(LAYOUTS, list(TRAINING)))
def test_training_writes_the_facts(model: tuple[str, torch.dtype], name: str) -> None:
    (family, dtype), settings = model, TRAINING[name]
    lm = build_tiny(family, dtype=dtype)
    updates, trace = fit_baseline(lm, REQUESTS, configured(name, settings))
    assert trace["losses"][-1] < 0.25 * trace["losses"][0]
    assert trace["argmax"] == [True, True]
    with lm.edited(edited_weights(lm, updates)):
        scored = evaluate_records(lm, [EditRecord(request) for request in REQUESTS]).records
    assert all(record.efficacy[0].target.argmax for record in scored), "on the model with the update written into it"
    if dtype == torch.float32:
        found = [record.efficacy[0].target.nll for record in scored]
        assert found == pytest.approx(trace["nll"], rel=1e-3, abs=1e-5), "the scorer measures the loss that was trained"


def test_training_ends_when_the_loss_is_low(tiny_llama: EditableModel) -> None:
    _, trace = fit_baseline(tiny_llama, REQUESTS, configured("ft", {**FREE, "fine_tune.loss_threshold": 3.0}))
    assert trace["stopped"] == "loss"
    assert trace["losses"][-1] < 3.0 <= trace["losses"][-2]
    assert trace["passes"] == len(trace["losses"]) < 60
    assert trace["updates"] == trace["passes"] - 1, "nothing is stepped on in the last pass"


def test_a_fact_that_is_known_is_left_alone(tiny_llama: EditableModel) -> None:
    config = configured("ft", {"fine_tune.loss_threshold": 1e3})
    (update,), trace = fit_baseline(tiny_llama, REQUESTS, config)
    assert (trace["passes"], trace["updates"], trace["stopped"]) == (1, 0, "loss")
    assert not update.delta().any()


def test_mini_batches_step_apart(tiny_llama: EditableModel) -> None:
    config = configured("ft", {"fine_tune.steps": 3, "fine_tune.batch_size": 1})
    _, trace = fit_baseline(tiny_llama, REQUESTS, config)
    assert (trace["passes"], trace["updates"]) == (3, 6)


# ---- constrained fine-tuning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_entry_changes_by_more_than_the_bound(family: str) -> None:
    lm = build_tiny(family)
    config = configured("ft-l", {"fine_tune.max_change": 2e-3, **FREE})
    (update,), trace = fit_baseline(lm, REQUESTS, config, layers=[1])
    bound = torch.tensor(2e-3)
    assert update.layer == 1
    assert update.delta().abs().max() == bound, "reached, and not passed"
    assert torch.equal(update.residuals, torch.eye(lm.d_model))
    assert trace["losses"][-1] < trace["losses"][0]


def test_the_first_step_is_that_of_training_the_weight_itself(tiny_gpt2: EditableModel) -> None:
    config = configured("ft", {"fine_tune.steps": 1, "fine_tune.learning_rate": 1e-3})
    (update,), _ = fit_baseline(tiny_gpt2, [DARRIEUX], config, layers=[2])
    model = copy.deepcopy(tiny_gpt2.model).requires_grad_(False)
    weight = model.get_submodule(tiny_gpt2.module_name(2)).weight.requires_grad_(True)
    prompt, ids = tiny_gpt2.encode(DARRIEUX.text), tiny_gpt2.encode(" " + DARRIEUX.target)
    assert len(ids) > 1
    labels = torch.tensor([[-100] * len(prompt) + ids])
    model(input_ids=torch.tensor([prompt + ids]), labels=labels).loss.backward()
    before = weight.detach().clone()
    torch.optim.Adam([weight], lr=1e-3).step()
    torch.testing.assert_close(update.delta(), (weight.detach() - before).T, rtol=1e-3, atol=1e-6)


def test_adapters_of_a_bfloat16_model_are_trained_in_float32() -> None:
    lm = build_tiny("llama", dtype=torch.bfloat16)
    (update,), _ = fit_baseline(lm, REQUESTS, configured("lora"), layers=[1])
    for factor in (update.residuals, update.dual_keys):
        assert not torch.equal(factor, factor.bfloat16().float())


def test_steps_below_the_spacing_of_bfloat16_are_not_lost() -> None:
    lm = build_tiny("llama", dtype=torch.bfloat16)
    (update,), _ = fit_baseline(lm, REQUESTS, configured("ft", {"fine_tune.steps": 3, "fine_tune.learning_rate": 1e-6}))
    assert update.dual_keys.dtype == torch.float32
    assert 1e-6 < float(update.delta().abs().max()) < 4e-6, "three steps"


# ---- LoRA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt2_square"])
def test_the_factors_give_the_model_that_peft_merges(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraModel

    lm = build_tiny(family)
    tuners: list[LoraModel] = []
    merged: list[Any] = []

    class Kept(LoraModel):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            tuners.append(self)

    def merging(*args: Any, **kwargs: Any) -> Any:
        trace = training.train(*args, **kwargs)
        merged.append(copy.deepcopy(tuners[0]).merge_and_unload().eval())
        return trace

    config_class, _ = lora._peft()
    monkeypatch.setattr(lora, "_peft", lambda: (config_class, Kept))
    monkeypatch.setattr(lora, "train", merging)
    updates, _ = fit_baseline(lm, REQUESTS, configured("lora", {**LORA, "lora.rank": 3}), layers=[0, 2])
    assert [part.residuals.shape for part in updates] == [(3, lm.d_model)] * 2
    ids = torch.tensor([lm.encode(EIFFEL.text)])
    with torch.no_grad():
        before, expected = logits(lm, EIFFEL.text), merged[0](ids).logits
        with lm.edited(edited_weights(lm, updates)):
            found = logits(lm, EIFFEL.text)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float((found - before).abs().max()) > 0.1


def test_the_seed_draws_the_adapter_whatever_the_global_stream(tiny_llama: EditableModel) -> None:
    torch.manual_seed(1)
    one, _ = fit_baseline(tiny_llama, REQUESTS, configured("lora"), layers=[1], seed=3)
    torch.manual_seed(2)
    same, _ = fit_baseline(tiny_llama, REQUESTS, configured("lora"), layers=[1], seed=3)
    other, _ = fit_baseline(tiny_llama, REQUESTS, configured("lora"), layers=[1], seed=4)
    assert torch.equal(one[0].dual_keys, same[0].dual_keys)
    assert torch.equal(one[0].residuals, same[0].residuals)
    assert not torch.equal(one[0].dual_keys, other[0].dual_keys)


def test_without_peft_the_error_says_how_to_get_it(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    before = model_state(tiny_llama)
    with pytest.raises(InputError, match=r"pip install 'peft"):
        fit_baseline(tiny_llama, REQUESTS, configured("lora"))
    assert changes(before, model_state(tiny_llama)) == []


def test_a_model_with_adapters_of_its_own_is_refused(tiny_llama: EditableModel) -> None:
    from peft import LoraConfig, LoraModel

    LoraModel(tiny_llama.model, LoraConfig(target_modules=["q_proj"]), "theirs")
    before = model_state(tiny_llama)
    with pytest.raises(InputError, match="merge_and_unload"):
        fit_baseline(tiny_llama, REQUESTS, configured("lora"))
    assert changes(before, model_state(tiny_llama)) == []


# ---- the model is as it was ----------------------------------------------------------------------------------


def unusual(family: str, dtype: torch.dtype = torch.float32) -> EditableModel:
    """A model in training mode, with one frozen parameter."""
    lm = build_tiny(family, dtype=dtype)
    lm.model.train()
    next(lm.model.parameters()).requires_grad_(False)
    return lm


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float32)])
def test_fitting_leaves_no_trace(name: str, family: str, dtype: torch.dtype) -> None:
    lm = unusual(family, dtype)
    modules = dict(lm.model.named_modules())
    before = model_state(lm)
    with torch.inference_mode() if name == "lora" else torch.no_grad():
        state = model_state(lm)
        updates, trace = fit_baseline(lm, REQUESTS, configured(name))
        assert changes(state, model_state(lm)) == []
    assert changes(before, model_state(lm)) == []
    assert list(dict(lm.model.named_modules()).items()) == list(modules.items()), "the same modules, in order"
    assert max(float(part.delta().abs().max()) for part in updates) > 0
    assert json.loads(json.dumps(trace)) == trace


class BrokenError(Exception):
    """What the tests inject; nothing in Emendo catches it."""


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
@pytest.mark.parametrize("name", TRAINED)
def test_a_failure_in_the_middle_of_training_leaves_no_trace(
    name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = unusual("gpt2")
    modules = dict(lm.model.named_modules())
    before = model_state(lm)
    calls = 0

    original = training.target_nll

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "target_nll", failing)
        with pytest.raises(error):
            fit_baseline(lm, REQUESTS, configured(name))
    assert calls == 3
    assert changes(before, model_state(lm)) == []
    assert dict(lm.model.named_modules()) == modules


def test_a_failure_half_way_through_the_injection_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraModel

    lm = unusual("llama")
    modules = dict(lm.model.named_modules())
    before = model_state(lm)
    original = LoraModel._create_and_replace

    def failing(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs["current_key"] == lm.module_name(2):
            raise BrokenError
        original(self, *args, **kwargs)

    monkeypatch.setattr(LoraModel, "_create_and_replace", failing)
    with pytest.raises(BrokenError):
        fit_baseline(lm, REQUESTS, configured("lora"))
    assert changes(before, model_state(lm)) == []
    assert dict(lm.model.named_modules()) == modules


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_call_gives_the_same_bits(name: str, tiny_gpt2: EditableModel) -> None:
    one, first = fit_baseline(tiny_gpt2, REQUESTS, configured(name), seed=5)
    two, second = fit_baseline(tiny_gpt2, REQUESTS, configured(name), seed=5)
    assert first == second
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.delta(), b.delta())


# ---- what cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "setting"), [("ft", "fine_tune.learning_rate"), ("lora", "lora.learning_rate")])
def test_a_loss_that_is_not_finite_names_the_remedy(name: str, setting: str, tiny_llama: EditableModel) -> None:
    before = model_state(tiny_llama)
    with pytest.raises(NumericalError, match=rf"The Eiffel Tower.*--set {setting}.*--dtype float32"):
        fit_baseline(tiny_llama, REQUESTS, configured(name, {setting: 1e37}))
    assert changes(before, model_state(tiny_llama)) == []


def test_requests_and_layers_are_checked(tiny_llama: EditableModel) -> None:
    with pytest.raises(RequestError, match="empty"):
        fit_baseline(tiny_llama, [], configured("ft"))
    with pytest.raises(ConflictError):
        fit_baseline(tiny_llama, [EIFFEL, EIFFEL], configured("ft"))
    with pytest.raises(LayerError, match="0 to 3"):
        fit_baseline(tiny_llama, REQUESTS, configured("ft"), layers=[4])
    with pytest.raises(MethodError, match="changes no weights"):
        fit_baseline(tiny_llama, REQUESTS, configured("in-context"), layers=[1])


def test_layers_come_with_their_origin(tiny_llama: EditableModel) -> None:
    def layers(name: str, given: list[int] | None = None) -> tuple[tuple[int, ...], str]:
        resolved = resolve_method(name, tiny_llama, layers=given)
        return resolved.layers, resolved.origins["layers"]

    assert layers("ft-l")[0] == (0,)
    assert layers("lora") == ((0, 1, 2, 3), "every layer")
    assert layers("lora", [3, 1]) == ((1, 3), "given (--layers)")
    assert layers("in-context") == ((), "in-context changes no weights")


def test_settings_are_read_by_dotted_name() -> None:
    config = configured("ft-l", {"fine_tune.steps": "7", "fine_tune.max_change": "none"})
    assert config.settings() == {
        "layers": [],
        "fine_tune.steps": 7,
        "fine_tune.learning_rate": 5e-4,
        "fine_tune.loss_threshold": 1e-2,
        "fine_tune.batch_size": 128,
        "fine_tune.max_change": None,
    }
    assert configured("lora", {"lora.alpha": 4}).settings()["lora.alpha"] == 4
    assert all(json.loads(json.dumps(config.to_dict())) == config.to_dict() for config in BASELINES.values())


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ft", {"fine_tune.step": 3}, "did you mean 'fine_tune.steps'"),
        ("ft", {"lora.rank": 3}, "unknown setting 'lora.rank'"),
        ("ft", {"fine_tune.steps": 2.5}, "fine_tune.steps=2.5: .*integer"),
        ("ft", {"fine_tune.steps": True}, "fine_tune.steps=True"),
        ("ft", {"fine_tune.steps": "none"}, "fine_tune.steps='none'"),
        ("ft-l", {"fine_tune.max_change": 0}, "above 0"),
        ("ft-l", {"fine_tune.max_change": "inf"}, "finite"),
        ("lora", {"lora.rank": 0}, "lora.rank=0"),
        ("in-context", {"in_context.template": "Imagine. {probe}"}, "expected {fact} once"),
        ("in-context", {"in_context.template": "{probe} {fact}"}, "at the end"),
        ("in-context", {"in_context.template": "{} {fact} {probe}"}, "no {}"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError, match=words.replace("{", r"\{").replace("}", r"\}")):
        configured(name, settings)


def test_settings_are_checked_without_their_text_too() -> None:
    with pytest.raises(MethodError, match=r"lora\.rank='8'"):
        LoraSettings(rank="8")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="did you mean 'lora'"):
        method_named("lorra")


# ---- in context ----------------------------------------------------------------------------------------------

RECORD = EditRecord(EIFFEL, "Paris", ("Where is it? The Eiffel Tower is in",), ("The Louvre is in",))


def test_the_fact_stands_in_front_of_every_prompt(tiny_llama: EditableModel) -> None:
    full = replace(
        RECORD, attribute_prompts=("a",), generation_prompts=("g",), probes=(Probe("locality", "l", ("x",), "nq"),)
    )
    (record,) = in_context_records([full])
    lead = "Imagine that The Eiffel Tower is located in the city of Rome. "
    assert record.request.prompt == lead + "{} is located in the city of"
    assert record.paraphrase_prompts == (lead + "Where is it? The Eiffel Tower is in",)
    assert record.neighborhood_prompts == (lead + "The Louvre is in",)
    assert (record.attribute_prompts, record.generation_prompts) == ((lead + "a",), (lead + "g",))
    assert record.probes == (Probe("locality", lead + "l", ("x",), "nq"),)
    assert (record.request.target, record.target_true, record.request.label) == ("Rome", "Paris", EIFFEL.label)
    aligned = align_prompt(tiny_llama, record.request)
    rest = tiny_llama.decode(aligned.ids[aligned.subject_last + 1 :])
    assert rest == " is located in the city of", "the subject is that of the probe, not that of the fact"


def test_the_template_can_be_changed() -> None:
    settings = InContextSettings(template="New Fact: {fact}\nPrompt: {probe}")
    (record,) = in_context_records([RECORD], settings)
    assert record.neighborhood_prompts == (
        "New Fact: The Eiffel Tower is located in the city of Rome\nPrompt: The Louvre is in",
    )


def test_a_fact_that_ends_a_sentence_gets_no_second_full_stop() -> None:
    record = EditRecord(EditRequest("{} is in the", "Paris", "U.S."))
    assert in_context_records([record])[0].request.text == "Imagine that Paris is in the U.S. Paris is in the"


def test_a_target_that_holds_a_slot_is_refused() -> None:
    with pytest.raises(RequestError, match=r"reword: Paris: 'a \{\}'"):
        in_context_records([EditRecord(EditRequest("{} is", "Paris", "a {}"))])


def test_in_context_changes_no_weights_and_the_scorer_takes_its_records(tiny_llama: EditableModel) -> None:
    config = configured("in-context")
    before = model_state(tiny_llama)
    updates, trace = fit_baseline(tiny_llama, [EIFFEL], config)
    assert (updates, trace["updates"]) == ((), 0)
    assert changes(before, model_state(tiny_llama)) == []
    plain = evaluate_records(tiny_llama, configured("ft").evaluation_prompts([RECORD])).records[0]
    prompted = evaluate_records(tiny_llama, config.evaluation_prompts([RECORD])).records[0]
    assert plain.efficacy[0].prompt == EIFFEL.text
    assert prompted.efficacy[0].prompt.startswith("Imagine that")
    assert prompted.efficacy[0].target.nll != plain.efficacy[0].target.nll
