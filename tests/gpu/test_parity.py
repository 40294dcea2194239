"""The update on a GPU: the same as in float64 on a CPU, up to rounding; rolled back bit for bit; no memory kept.

Every test runs on the CPU too, which proves the test itself and holds float32 there to the same tolerance.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from emendo.editing.pipeline import plan_edit
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.methods import resolve_method
from emendo.models import EditableModel, wrap
from emendo.requests import EditRequest
from emendo.shapes import Moment
from emendo.solve import prepare
from emendo.statistics import MomentStore, obtain_for_method
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny

pytestmark = pytest.mark.device

REQUESTS = [
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("{}, a native speaker of", "Danielle Darrieux", "Tokyo"),
]
LAYERS = {"emmet": [1], "memit": [1, 2], "alphaedit": [1, 2], "emendo": [1, 2]}
FAMILIES = ("llama", "gpt2", "gptj", "gemma2")
SETTINGS: dict[str, Any] = {
    "target.steps": 4,
    "target.precision": "float32",
    "contexts.scheme": "fixed",
    "moments.multiple": 4,
}
NULL_SPACE = {"preservation.null_space": "energy", "preservation.threshold": 0.3}
"""AlphaEdit's absolute threshold keeps nothing of a tiny random model; this keeps most dimensions, and not all."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-2, torch.bfloat16: 3e-1}
"""Largest ‖ΔW − ΔW₆₄‖ / ‖ΔW₆₄‖, by dtype of the weights, where ΔW₆₄ is planned in float64 on the CPU from the same
weights. Over all families and methods here the CPU's own float32 reaches 5e-6, float16 1.2e-2 and bfloat16 9e-2.
"""

CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
# On the CPU every method and every family once, on a GPU all of their pairs.
PAIRS = [("llama", method, "cpu") for method in LAYERS]
PAIRS += [(family, "emendo", "cpu") for family in FAMILIES[1:]]
HALVES = [("llama", torch.bfloat16, "cpu"), ("gpt2", torch.float16, "cpu")]
ON_CUDA = [pytest.param(family, method, "cuda", marks=CUDA) for family in FAMILIES for method in LAYERS]
HALVES_ON_CUDA = [
    pytest.param(family, dtype, "cuda", marks=CUDA) for family in FAMILIES for dtype in (torch.bfloat16, torch.float16)
]


@cache
def tiny(family: str) -> EditableModel:
    return build_tiny(family)


def on(lm: EditableModel, device: str, dtype: torch.dtype) -> EditableModel:
    """The same weights elsewhere, up to the rounding of another dtype."""
    model = copy.deepcopy(lm.model).to(device=device, dtype=dtype)
    return wrap(model, lm.tokenizer, name=lm.name)


@cache
def moments(family: str, folder: Path) -> dict[int, Moment]:
    """Counted once, in float64 on the CPU, for every plan of a family."""
    lm = on(tiny(family), "cpu", torch.float64)
    config = resolve_method("memit", lm, layers=[1, 2], settings=SETTINGS).config
    return obtain_for_method(lm, [1, 2], config.moments, store=MomentStore(folder))[0]


def planned(lm: EditableModel, method: str, found: dict[int, Moment]) -> Plan:
    settings = SETTINGS | (NULL_SPACE if method == "alphaedit" else {})
    resolved = resolve_method(method, lm, layers=LAYERS[method], settings=settings)
    prepared = {
        layer: prepare(found[layer].to(lm.weight(layer).device), resolved.config.preservation)
        for layer in LAYERS[method]
    }
    if method == "alphaedit":
        assert all(0 < layer.dimensions < layer.d_in for layer in prepared.values())
    return plan_edit(lm, REQUESTS, resolved, prepared)


@cache
def reference(family: str, method: str, dtype: torch.dtype, folder: Path) -> Plan:
    """The plan in float64 on the CPU, of the weights as a dtype has them."""
    rounded = on(tiny(family), "cpu", dtype)
    return planned(on(rounded, "cpu", torch.float64), method, moments(family, folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moments")


def error(found: Plan, expected: Plan) -> float:
    """Largest relative error of a layer's ΔW."""
    pairs = list(zip(found.update.layers, expected.update.layers, strict=True))
    assert [a.layer for a, _ in pairs] == [b.layer for _, b in pairs]
    deltas = [(a.delta().double(), b.delta().double()) for a, b in pairs]
    return max(float((a - b).norm() / b.norm()) for a, b in deltas)


def allocated(device: str) -> int:
    """Bytes that are in use: as CUDA's allocator counts them, or of all tensors that Python can reach."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    # Fake tensors, which torch.compile leaves behind in a process, have no memory.
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors = [thing for thing in found if not isinstance(thing, FakeTensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize(("family", "method", "device"), PAIRS + ON_CUDA)
def test_the_update_is_that_of_float64_on_a_cpu(family: str, method: str, device: str, folder: Path) -> None:
    expected = reference(family, method, torch.float32, folder)
    lm = on(tiny(family), device, torch.float32)
    assert lm.weight(1).device.type == device
    found = planned(lm, method, moments(family, folder))
    assert [len(trace.losses) for trace in found.targets] == [len(trace.losses) for trace in expected.targets]
    assert error(found, expected) <= TOLERANCE[torch.float32]
    for layer, wanted in zip(found.layers, expected.layers, strict=True):
        assert layer.relative_norm == pytest.approx(wanted.relative_norm, rel=1e-3)
        assert layer.relative_cost == pytest.approx(wanted.relative_cost, rel=1e-3)
        assert layer.achieved == pytest.approx(wanted.achieved, rel=1e-3)


@pytest.mark.parametrize(("family", "dtype", "device"), HALVES + HALVES_ON_CUDA)
def test_half_precision_weights(family: str, dtype: torch.dtype, device: str, folder: Path) -> None:
    """The update of weights in half precision is near; what is written is W + ΔW, rounded once."""
    lm = on(tiny(family), device, dtype)
    found = planned(lm, "emendo", moments(family, folder))
    assert error(found, reference(family, "emendo", dtype, folder)) <= TOLERANCE[dtype]
    session = EditSession(lm)
    originals = {part.layer: lm.weight(part.layer).clone() for part in found.update.layers}
    update = replace(found.update, base=session.base)
    with session.applied(update):
        for part in update.layers:
            before = originals[part.layer]
            expected = (before.float() + part.delta().to(before.device)).to(dtype)
            assert torch.equal(lm.weight(part.layer), expected)
            assert not torch.equal(expected, before)
    assert all(torch.equal(lm.weight(layer), original) for layer, original in originals.items())


@pytest.mark.parametrize("device", DEVICES)
def test_edits_on_edits_are_rolled_back_bit_for_bit(device: str, tmp_path: Path) -> None:
    lm = on(tiny("llama"), device, torch.float32)
    before = {name: value.detach().clone() for name, value in lm.model.named_parameters()}
    session = EditSession(lm, store=MomentStore(tmp_path))
    for request in REQUESTS:
        update = session.plan([request], "emendo", layers=[1, 2], settings=SETTINGS).update
        session.apply(update)
    assert not torch.equal(lm.model.get_submodule(update.layers[0].module).weight, before[weight_name(update)])
    session.rollback()
    assert session.verify_rolled_back() == {part.module: True for part in update.layers}
    for name, value in lm.model.named_parameters():
        assert value.device.type == device
        assert torch.equal(value, before[name]), name


def weight_name(update: ModelUpdate) -> str:
    return f"{update.layers[0].module}.weight"


@pytest.mark.parametrize("device", DEVICES)
def test_memory_does_not_grow(device: str, tmp_path: Path) -> None:
    """A session keeps the originals of what it touched, and each round of planning and editing nothing more."""
    lm = on(tiny("llama"), device, torch.float32)
    session = EditSession(lm, store=MomentStore(tmp_path))

    def edit() -> None:
        session.apply(session.plan(REQUESTS, "memit", layers=[1, 2], settings=SETTINGS).update)
        session.rollback()

    edit()  # moments, factors, originals, and the workspaces of the device's libraries
    before = allocated(device)
    for _ in range(2):
        edit()
    assert allocated(device) == before
    update = session.plan(REQUESTS, "memit", layers=[1, 2], settings=SETTINGS).update
    before = allocated(device)
    for _ in range(3):
        session.apply(update)
        session.rollback()
    assert allocated(device) == before
