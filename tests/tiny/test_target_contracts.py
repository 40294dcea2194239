"""What the target search owes the model and the caller: nothing changed, everything told, nothing wrong let through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from emendo.editing import value_search as targets
from emendo.editing.value_search import find_targets
from emendo.errors import NumericalError, SelfCheckError
from emendo.models import ModelAdapter
from emendo.models.alignment import align_edit
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.target_cases import CONTEXTS, LAYER, REQUESTS, SETTINGS

# ---- the model afterwards ------------------------------------------------------------------------------------


def unsettle(adapter: ModelAdapter) -> None:
    """A state that no default would restore by luck."""
    adapter.model.train()
    adapter.blocks[1].eval()
    adapter.model.requires_grad_(True)
    adapter.weight(0)
    next(adapter.blocks[2].parameters()).requires_grad_(False)
    adapter.tokenizer.padding_side = "left"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_model_is_untouched(tiny: ModelAdapter, attention: str) -> None:
    if attention not in ("eager", tiny.model.config._attn_implementation):
        pytest.skip(f"{tiny.name} has no {attention}")
    tiny.model.set_attn_implementation(attention)
    unsettle(tiny)
    before = model_state(tiny)
    find_targets(tiny, REQUESTS[:3], CONTEXTS, LAYER, replace(SETTINGS, steps=3))
    assert changes(before, model_state(tiny)) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_search_without_gradients_around_it_is_the_same_search(mode: type[torch.no_grad]) -> None:
    adapter = build_tiny("llama")
    expected = find_targets(adapter, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    with mode():
        found = find_targets(adapter, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    assert torch.equal(found.value, expected.value)
    assert found.traces == expected.traces


class InjectedError(Exception):
    """Raised in the middle of things."""


def count_or_fail(adapter: ModelAdapter, fail_at: int | None) -> Callable[[], int]:
    """Count calls of the last block's down-projection, and raise at one of them."""
    calls = 0

    def hook(module: object, args: object) -> None:
        nonlocal calls
        calls += 1
        if calls - 1 == fail_at:
            raise InjectedError

    adapter.down_projection(adapter.n_layers - 1).register_forward_pre_hook(hook)
    return lambda: calls


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_model_is_untouched_after_an_exception_at_any_step(family: str) -> None:
    settings = replace(SETTINGS, steps=4, loss_threshold=0.0)
    adapter = build_tiny(family)
    calls = count_or_fail(adapter, None)
    find_targets(adapter, REQUESTS[:2], CONTEXTS, LAYER, settings)
    # The prefill, and one pass each step; the first is also what the replay is checked by.
    assert calls() == 1 + settings.steps
    for at in range(calls()):
        adapter = build_tiny(family)
        unsettle(adapter)
        count_or_fail(adapter, at)
        before = model_state(adapter)
        with pytest.raises(InjectedError):
            find_targets(adapter, REQUESTS[:2], CONTEXTS, LAYER, settings)
        assert changes(before, model_state(adapter)) == [], f"call {at}"


def test_progress_is_told_about_every_request_also_after_an_error() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.events: list[object] = []

        def start(self, stage: str, total: int | None = None) -> None:
            self.events.append((stage, total))

        def advance(self, n: int = 1) -> None:
            self.events.append(n)

        def finish(self) -> None:
            self.events.append("finish")

    adapter, recorder = build_tiny("llama"), Recorder()
    find_targets(adapter, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=3, batch_size=4), recorder)
    assert recorder.events[0] == ("targets", 6)
    assert recorder.events[-1] == "finish"
    assert sum(event for event in recorder.events if isinstance(event, int)) == 6
    count_or_fail(adapter, 3)
    with pytest.raises(InjectedError):
        find_targets(adapter, REQUESTS, CONTEXTS, LAYER, SETTINGS, failed := Recorder())
    assert failed.events[-1] == "finish"


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["below", "above", "unembedding"])
def test_nan_weights_are_named(where: str) -> None:
    """Weights that went wrong after the model was wrapped, as after a failed edit."""
    adapter = build_tiny("llama")
    if where == "unembedding":
        adapter.model.lm_head.weight.data[0, 0] = float("nan")
    else:
        adapter.write(0 if where == "below" else 3, torch.full_like(adapter.weight(0), float("nan")))
    before = model_state(adapter)
    with pytest.raises(NumericalError) as caught:
        find_targets(adapter, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    assert "'Paris'" in str(caught.value)
    assert "'Bordeaux'" in str(caught.value)
    assert "finite" in str(caught.value)
    assert changes(before, model_state(adapter)) == []


def test_only_the_requests_that_fail_are_named() -> None:
    """A NaN in one token's embedding concerns only the requests that hold this token."""
    adapter = build_tiny("llama")
    concerned = align_edit(adapter, REQUESTS[1]).ids
    others = {
        i for request in (REQUESTS[0], REQUESTS[2]) for c in CONTEXTS for i in align_edit(adapter, request, c).ids
    }
    token = next(token for token in concerned if token not in others)
    adapter.model.get_input_embeddings().weight.data[token] = float("nan")
    with pytest.raises(NumericalError) as caught:
        find_targets(adapter, REQUESTS[:3], CONTEXTS, LAYER, SETTINGS)
    assert "'Bordeaux'" in str(caught.value)
    assert "'Paris'" not in str(caught.value)
    assert "'The Eiffel Tower'" not in str(caught.value)


def test_one_request_that_replays_wrongly_is_not_hidden_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = build_tiny("llama")
    layout = targets.target_problem

    def damaged(*args: Any, **settings: Any) -> Any:
        problem, init = layout(*args, **settings)
        hurt = problem.owner[problem.layout.rows] == 1
        problem.constant[hurt] += 0.01 * problem.constant[hurt].roll(1, dims=1)
        return problem, init

    monkeypatch.setattr(targets, "target_problem", damaged)
    many = [replace(REQUESTS[0], subject=f"The Tower number {number}") for number in range(24)]
    with pytest.raises(SelfCheckError, match="for 'The Tower number 1'; its blocks"):
        find_targets(adapter, many, CONTEXTS, LAYER, SETTINGS)


def test_blocks_that_do_more_than_known_are_refused() -> None:
    """A block that looks at its neighbours' hidden states cannot be replayed on a suffix."""
    adapter = build_tiny("llama")
    adapter.blocks[2].register_forward_hook(lambda module, args, out: out + out.mean(dim=1, keepdim=True))
    before = model_state(adapter)
    with pytest.raises(SelfCheckError, match="from layer 1"):
        find_targets(adapter, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    assert changes(before, model_state(adapter)) == []
