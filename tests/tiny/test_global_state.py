"""Torch's global state is no part of a result: the same numbers under each, and it stays as the caller had it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from emendo.editing.session import EditSession
from emendo.errors import EmendoError
from emendo.evaluate import perplexity
from emendo.io.environment import kernel_switches, processor, set_kernel_switches
from emendo.models.sampling import row_uniforms
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.public_functions import PUBLIC, arguments, values_of

FACT = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)


@contextmanager
def rough_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_float32_matmul_precision("highest")


@contextmanager
def rough_products_by_the_newer_switch() -> Iterator[None]:
    """Torch's older getter fails from then on."""
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        assert products.fp32_precision == "bf16"
        products.fp32_precision = before


@contextmanager
def without_flash_attention() -> Iterator[None]:
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        yield
    finally:
        assert not torch.backends.cuda.flash_sdp_enabled()
        torch.backends.cuda.enable_flash_sdp(True)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        assert torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)


@contextmanager
def without_denormals() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def everything() -> Iterator[None]:
    """Most of it at once."""
    rounded = torch.autocast("cpu", dtype=torch.bfloat16)
    with default_dtype(), rough_products(), without_flash_attention(), torch.device("meta"), rounded:
        yield


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "rough products": rough_products,
    "rough products, newer switch": rough_products_by_the_newer_switch,
    "without flash attention": without_flash_attention,
    "only plain attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "deterministic": deterministic,
    "without denormals": without_denormals,
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )


def numbers(folder: Path, around: AbstractContextManager[object] | None = None) -> tuple[object, ...]:
    """A plan with sampled contexts and moments of its own, and a perplexity, made inside a state."""
    lm = build_tiny()
    session = EditSession(lm, store=MomentStore(folder))
    settings = {"target.steps": 2, "moments.multiple": 2}
    with around or torch.enable_grad():
        before = state()
        plan = session.plan([FACT], "emmet", settings=settings)
        session.apply(plan.update)
        measured = perplexity(lm, "The capital of France is Paris.")
        session.rollback()
        assert state() == before
    return plan.update.id, plan.contexts, plan.update.info["moments"]["fingerprint"], measured.value


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    return numbers(tmp_path_factory.mktemp("moments"))


@pytest.mark.parametrize("name", STATES)
def test_no_global_state_changes_a_number(name: str, expected: tuple[object, ...], tmp_path: Path) -> None:
    assert numbers(tmp_path, STATES[name]()) == expected


CHANGING = (
    *("write", "save", "push", "rollback", "create", "commit", "move_to", "apply", "accept", "put", "edit", "revert"),
    *("init", "checkout", "compact", "LedgerStore", "Experiment", "withdraw", "set_alias", "run_gate", "judge"),
)
"""Functions that leave something behind, or say how long they took."""

BY_INTENT = ("unembed_in_search",)
"""Functions that compute in the precision that their caller chose."""


def plain(value: Any, depth: int = 0) -> Any:
    """A result as something that can be compared, bit for bit."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), str(value.device), tuple(value.shape), repr(value.detach().double().cpu().tolist()))
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tobytes()
    if depth > 8 or isinstance(value, str | int | float | bool | None):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, depth + 1) for part in value]
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name), depth + 1) for entry in fields(value)}
    return type(value).__name__


def result_of(name: str, values: dict[str, Any]) -> Any:
    given = arguments(name, values)
    first = [given.pop("self")] if "self" in given else []
    return plain(PUBLIC[name](*first, **given))


def test_no_public_function_takes_part_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values, compared = values_of(tmp_path), 0
    values["session"].rollback()
    for name in PUBLIC:
        if any(word in name for word in (*CHANGING, *BY_INTENT)):
            continue
        with suppress(EmendoError, TypeError):  # values that are of the right types, and no more
            before = result_of(name, values)
            with everything():
                found = result_of(name, values)
            assert found == before, name
            compared += 1
    assert compared > 150


def test_what_is_not_pinned_is_recorded() -> None:
    usual = processor("cpu")["kernel_choice"]
    with deterministic():
        switches = kernel_switches()
        assert "deterministic=on" in processor("cpu")["kernel_choice"]
    assert processor("cpu")["kernel_choice"] == usual
    set_kernel_switches({**switches, "mkldnn": False})
    try:
        assert {"deterministic=on", "mkldnn=off"} <= set(processor("cpu")["kernel_choice"].split())
    finally:
        set_kernel_switches({**switches, "deterministic": False})


def test_random_numbers_of_a_seed_are_the_same_under_any_default_dtype() -> None:
    plain = row_uniforms(0, 0, 5)
    with default_dtype():
        found = row_uniforms(0, 0, 5)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)
