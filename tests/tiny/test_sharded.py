"""Models whose blocks are on different devices: what is read, searched and written stays where it belongs.

On a machine with one device both halves are on it, with the hooks that a sharded model has; the GPU machine puts one
half on each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.errors import InputError, UnsupportedModelError
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel, load, wrap
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.model_state import changes, model_state

pytestmark = pytest.mark.device

accelerate = pytest.importorskip("accelerate")

REQUESTS = [
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The weather in {}", "Tokyo", "of Rome"),
]
CONTEXTS = ("{}", "The weather was calm. {}")
SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 12]]
HALVES = [
    pytest.param("cpu", "cpu", id="one"),
    pytest.param("cpu", "cuda:0", id="cpu-cuda", marks=pytest.mark.gpu),
    pytest.param("cuda:0", "cpu", id="cuda-cpu", marks=pytest.mark.gpu),
]
KINDS = ["llama", "gemma3_text", "opt", "gptj", "bloom", "falcon", "falcon_alibi", "llava"]


def sharded(family: str, lower: str, upper: str) -> EditableModel:
    """A tiny model with embedding and blocks 0 and 1 on one device, everything above on another."""
    lm = build_tiny(family)
    decoder, above = lm.decoder, {*lm.spec.final, *(f"{lm.spec.blocks}.{i}" for i in (2, 3))}
    for name, module in decoder.named_modules():
        if getattr(module, "_hf_hook", None) is None and (list(module.children()) == [] or name.count(".") == 1):
            device = upper if any(name == part or name.startswith(f"{part}.") for part in above) else lower
            accelerate.hooks.add_hook_to_module(module.to(device), accelerate.hooks.AlignDevicesHook(device))
    head = lm.model.get_output_embeddings()
    if head.weight is not lm.model.get_input_embeddings().weight:
        accelerate.hooks.add_hook_to_module(head.to(upper), accelerate.hooks.AlignDevicesHook(upper))
    return wrap(lm.model, lm.tokenizer, name=lm.name)


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    found, expected = found.detach().cpu(), expected.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("lower", "upper"), HALVES)
@pytest.mark.parametrize("family", KINDS)
def test_activations_stay_on_their_blocks_device(family: str, lower: str, upper: str) -> None:
    plain, lm = build_tiny(family), sharded(family, lower, upper)
    assert [str(lm.block_device(layer)) for layer in range(4)] == [lower, lower, upper, upper]
    assert str(lm.device) == lower
    batch = lm.batch(SEQUENCES)
    layers = range(4)
    capture = lm.run(batch, keys=layers, mlp_out=layers, resid=layers)
    expected = plain.run(plain.batch(SEQUENCES), keys=layers, mlp_out=layers, resid=layers)
    real = plain.batch(SEQUENCES).attention_mask
    for what in ("keys", "mlp_out", "resid"):
        for layer in layers:
            found = getattr(capture, what)[layer]
            assert found.device == lm.block_device(layer)
            close(found.cpu()[real], getattr(expected, what)[layer][real])
    hidden = lm.final_hidden(batch)
    assert hidden.device == batch.input_ids.device
    assert lm.unembed(hidden).device == hidden.device
    close(lm.unembed(hidden).cpu()[real], plain.unembed(plain.final_hidden(plain.batch(SEQUENCES)))[real])
    assert lm.generate("The capital of", 4) == plain.generate("The capital of", 4)
    assert lm.weights_digest() == plain.weights_digest()


@pytest.mark.parametrize(("lower", "upper"), HALVES)
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", KINDS)
def test_targets_are_those_of_one_device(family: str, layer: int, lower: str, upper: str) -> None:
    settings = TargetSettings(steps=4, learning_rate=0.1, loss_threshold=0.0)
    expected = search_values(build_tiny(family), REQUESTS, CONTEXTS, layer, settings)
    lm = sharded(family, lower, upper)
    before = model_state(lm) if lower == upper else None
    found = search_values(lm, REQUESTS, CONTEXTS, layer, settings)
    assert found.value.device == lm.block_device(layer)
    close(found.value, expected.value, 1e-3)
    if before is not None:
        assert changes(before, model_state(lm)) == []


@pytest.mark.parametrize(("lower", "upper"), HALVES)
@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
def test_an_edit_over_both_devices(family: str, lower: str, upper: str, tmp_path: Path) -> None:
    settings = {"moments.multiple": 4, "target.steps": 3, "contexts.scheme": "fixed", "target.precision": "float32"}
    plans = []
    adapters = [build_tiny(family), sharded(family, lower, upper)]
    for number, lm in enumerate(adapters):
        session = EditSession(lm, store=MomentStore(tmp_path / str(number)))
        plan = session.plan(REQUESTS, "memit", layers=[1, 2], settings=settings)
        originals = {layer: lm.weight(layer).clone() for layer in (1, 2)}
        session.apply(plan.update)
        for part in plan.update.layers:
            original = originals[part.layer]
            assert lm.weight(part.layer).device == original.device
            assert torch.equal(lm.weight(part.layer), original + part.delta().to(original.device))
        session.rollback()
        assert all(torch.equal(lm.weight(layer), original) for layer, original in originals.items())
        plans.append(plan)
    for one, other in zip(plans[0].update.layers, plans[1].update.layers, strict=True):
        close(other.delta(), one.delta(), 1e-2)


# ---- maps of devices -----------------------------------------------------------------------------------------


def test_a_dispatched_model_is_edited_like_any_other() -> None:
    lm = build_tiny("llama")
    parts = [
        "model.embed_tokens",
        *(f"model.layers.{i}" for i in range(4)),
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    ]
    model = accelerate.dispatch_model(lm.model, dict.fromkeys(parts, "cpu"), force_hooks=True)
    assert hasattr(model.model.layers[2], "_hf_hook")
    again = wrap(model, lm.tokenizer)
    before = model_state(again)
    search_values(again, REQUESTS, CONTEXTS, 1, TargetSettings(steps=2))
    assert changes(before, model_state(again)) == []


def test_load_takes_a_map_of_devices(tmp_path: Path) -> None:
    lm = build_tiny("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    found = load(tmp_path, device_map={"": "cpu"})
    assert found.weights_digest() == lm.weights_digest()
    with pytest.raises(UnsupportedModelError, match="offloaded"):  # so the map is obeyed
        load(tmp_path, device_map={"": "meta"})
    with pytest.raises(InputError, match=r"'cpu' and a device_map"):
        load(tmp_path, device="cpu", device_map={"": "cpu"})


@pytest.mark.parametrize("place", [0, "cuda:0", torch.device("cuda", 0), "cuda"])
def test_a_map_to_cuda_where_there_is_none(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"'cuda(:0)?', but no CUDA device"):
        load("demo", device_map={"model": "cpu", "lm_head": place})


@pytest.mark.parametrize("device_map", ["nonsense", "auto ", {"": "nonsense"}, {"": "auto"}, {"": "mps"}, "mps"])
def test_a_map_to_an_unknown_device(device_map: Any) -> None:
    with pytest.raises(InputError, match=r"cpu, cuda or cuda:N \(device_map\)"):
        load("demo", device_map=device_map)


def test_a_map_to_a_device_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"'cuda:2'.*2 CUDA device"):
        load("demo", device_map={"": 2})


def test_offloaded_models_are_refused(tmp_path: Path) -> None:
    lm = build_tiny("llama")
    n_weights = len(list(lm.model.parameters()))
    model = accelerate.cpu_offload(lm.model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=rf"{n_weights} weights are offloaded.*'meta'.*--device cpu"):
        wrap(model, lm.tokenizer)


def test_a_single_offloaded_module_is_refused() -> None:
    lm = build_tiny("llama")
    lm.model.model.embed_tokens.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"1 weights are offloaded.*embed_tokens"):
        wrap(lm.model, lm.tokenizer)
