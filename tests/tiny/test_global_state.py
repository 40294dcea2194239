"""Torch's global state is no part of a result: the same numbers under each, and it stays as the caller had it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.evaluate import perplexity
from emendo.models.sampling import row_uniforms
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny

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


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "rough products": rough_products,
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


def test_random_numbers_of_a_seed_are_the_same_under_any_default_dtype() -> None:
    plain = row_uniforms(0, 0, 5)
    with default_dtype():
        found = row_uniforms(0, 0, 5)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)
