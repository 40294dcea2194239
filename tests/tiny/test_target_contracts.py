"""What the target search owes the model and the caller: nothing changed, everything told, nothing wrong let through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from emendo.editing import value_search as targets
from emendo.editing.value_search import search_values
from emendo.errors import NumericalError, SelfCheckError
from emendo.models import EditableModel
from emendo.models.alignment import align_edit
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.target_cases import CONTEXTS, LAYER, REQUESTS, SETTINGS

# ---- the model afterwards ------------------------------------------------------------------------------------


def unsettle(lm: EditableModel) -> None:
    """A state that no default would restore by luck."""
    lm.model.train()
    lm.blocks[1].eval()
    lm.model.requires_grad_(True)
    lm.weight(0)
    next(lm.blocks[2].parameters()).requires_grad_(False)
    lm.tokenizer.padding_side = "left"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_model_is_untouched(tiny: EditableModel, attention: str) -> None:
    if attention not in ("eager", tiny.model.config._attn_implementation):
        pytest.skip(f"{tiny.name} has no {attention}")
    tiny.model.set_attn_implementation(attention)
    unsettle(tiny)
    before = model_state(tiny)
    search_values(tiny, REQUESTS[:3], CONTEXTS, LAYER, replace(SETTINGS, steps=3))
    assert changes(before, model_state(tiny)) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_search_without_gradients_around_it_is_the_same_search(mode: type[torch.no_grad]) -> None:
    lm = build_tiny("llama")
    expected = search_values(lm, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    with mode():
        found = search_values(lm, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    assert torch.equal(found.value, expected.value)
    assert found.traces == expected.traces


class InjectedError(Exception):
    """Raised in the middle of things."""


def count_or_fail(lm: EditableModel, fail_at: int | None) -> Callable[[], int]:
    """Count calls of the last block's down-projection, and raise at one of them."""
    calls = 0

    def hook(module: object, args: object) -> None:
        nonlocal calls
        calls += 1
        if calls - 1 == fail_at:
            raise InjectedError

    lm.down_projection(lm.n_layers - 1).register_forward_pre_hook(hook)
    return lambda: calls


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_model_is_untouched_after_an_exception_at_any_step(family: str) -> None:
    settings = replace(SETTINGS, steps=4, loss_threshold=0.0)
    lm = build_tiny(family)
    calls = count_or_fail(lm, None)
    search_values(lm, REQUESTS[:2], CONTEXTS, LAYER, settings)
    # The prefill, and one pass each step; the first is also what the replay is checked by.
    assert calls() == 1 + settings.steps
    for at in range(calls()):
        lm = build_tiny(family)
        unsettle(lm)
        count_or_fail(lm, at)
        before = model_state(lm)
        with pytest.raises(InjectedError):
            search_values(lm, REQUESTS[:2], CONTEXTS, LAYER, settings)
        assert changes(before, model_state(lm)) == [], f"call {at}"


def test_progress_is_told_about_every_step_also_after_an_error() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.events: list[object] = []

        def start(self, stage: str, total: int | None = None) -> None:
            self.events.append((stage, total))

        def advance(self, n: int = 1) -> None:
            self.events.append(n)

        def finish(self) -> None:
            self.events.append("finish")

    lm, recorder = build_tiny("llama"), Recorder()
    search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=3, batch_size=4), recorder)
    assert recorder.events[0] == ("targets", 18)
    assert recorder.events[-1] == "finish"
    assert sum(event for event in recorder.events if isinstance(event, int)) == 18
    count_or_fail(lm, 3)
    with pytest.raises(InjectedError):
        search_values(lm, REQUESTS, CONTEXTS, LAYER, SETTINGS, failed := Recorder())
    assert failed.events[-1] == "finish"


# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["below", "above", "unembedding"])
def test_nan_weights_are_named(where: str) -> None:
    """Weights that went wrong after the model was wrapped, as after a failed edit."""
    lm = build_tiny("llama")
    if where == "unembedding":
        lm.model.lm_head.weight.data[0, 0] = float("nan")
    else:
        lm.write(0 if where == "below" else 3, torch.full_like(lm.weight(0), float("nan")))
    before = model_state(lm)
    with pytest.raises(NumericalError) as caught:
        search_values(lm, REQUESTS[:2], CONTEXTS, LAYER, SETTINGS)
    assert "'Paris'" in str(caught.value)
    assert "'Bordeaux'" in str(caught.value)
    assert "finite" in str(caught.value)
    assert changes(before, model_state(lm)) == []


def test_only_the_requests_that_fail_are_named() -> None:
    """A NaN in one token's embedding concerns only the requests that hold this token."""
    lm = build_tiny("llama")
    concerned = align_edit(lm, REQUESTS[1]).ids
    others = {i for request in (REQUESTS[0], REQUESTS[2]) for c in CONTEXTS for i in align_edit(lm, request, c).ids}
    token = next(token for token in concerned if token not in others)
    lm.model.get_input_embeddings().weight.data[token] = float("nan")
    with pytest.raises(NumericalError) as caught:
        search_values(lm, REQUESTS[:3], CONTEXTS, LAYER, SETTINGS)
    assert "'Bordeaux'" in str(caught.value)
    assert "'Paris'" not in str(caught.value)
    assert "'The Eiffel Tower'" not in str(caught.value)


def test_one_request_that_replays_wrongly_is_not_hidden_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_tiny("llama")
    layout = targets.value_problem

    def damaged(*args: Any, **settings: Any) -> Any:
        problem, init = layout(*args, **settings)
        hurt = problem.owner[problem.layout.rows] == 1
        problem.constant[hurt] += 0.01 * problem.constant[hurt].roll(1, dims=1)
        return problem, init

    monkeypatch.setattr(targets, "value_problem", damaged)
    many = [replace(REQUESTS[0], subject=f"The Tower number {number}") for number in range(24)]
    with pytest.raises(SelfCheckError, match="for 'The Tower number 1'; its blocks"):
        search_values(lm, many, CONTEXTS, LAYER, SETTINGS)


def test_blocks_that_do_more_than_known_are_refused() -> None:
    """A block that looks at its neighbours' hidden states cannot be replayed on a suffix."""
    lm = build_tiny("llama")
    lm.blocks[2].register_forward_hook(lambda module, args, out: out + out.mean(dim=1, keepdim=True))
    before = model_state(lm)
    with pytest.raises(SelfCheckError, match="from layer 1"):
        search_values(lm, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    assert changes(before, model_state(lm)) == []
