"""Hooks of others: those that only look are left alone, those that change what the model computes are told of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, weight_norm

from emendo.editing.session import EditSession
from emendo.errors import UnsupportedModelError, WeightsChangedError
from emendo.models import EditableModel, wrap
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.quick_plans import EIFFEL, quick_plan


def first_of(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


def doubled(out: Any) -> Any:
    return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out


def steer_a_block(model: Any) -> Any:
    return model.model.layers[2].register_forward_hook(lambda module, args, out: doubled(out))


def scale_what_enters(model: Any) -> Any:
    return model.model.layers[1].mlp.register_forward_pre_hook(lambda module, args: (1.5 * args[0],))


def write_in_place(model: Any) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        first_of(out)[..., 0] += 1  # nothing is returned

    return model.model.layers[0].register_forward_hook(hook)


def mask_a_head(model: Any) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
        return doubled(out)

    return model.model.layers[3].self_attn.register_forward_hook(hook, with_kwargs=True)


def bias_the_words(model: Any) -> Any:
    return model.lm_head.register_forward_hook(lambda module, args, out: out - out.mean(dim=-1, keepdim=True) * 3)


def change_the_answer(model: Any) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        out.logits = out.logits * 0
        return out

    return model.register_forward_hook(hook)


class Steering(nn.Module):
    def forward(self, module: nn.Module, args: Any, out: Any) -> Any:
        return doubled(out)


def a_module_as_hook(model: Any) -> Any:
    return model.model.layers[2].register_forward_hook(Steering())


CHANGES = [
    steer_a_block,
    scale_what_enters,
    write_in_place,
    mask_a_head,
    bias_the_words,
    change_the_answer,
    a_module_as_hook,
]


@pytest.mark.parametrize("put", CHANGES, ids=lambda put: put.__name__)
def test_what_changes_the_model_is_refused_when_it_is_wrapped_and_when_it_is_edited(
    put: Callable[[Any], Any], store: MomentStore
) -> None:
    lm = build_tiny()
    handle = put(lm.model)
    with pytest.raises(UnsupportedModelError, match=r"test_foreign_hooks\.\S+ on .*handle\.remove\(\)"):
        wrap(lm.model, lm.tokenizer)
    handle.remove()  # as the message says
    lm = wrap(lm.model, lm.tokenizer)
    session = EditSession(lm, store=store)
    plan = quick_plan(session, [EIFFEL])
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    handle = put(lm.model)
    for call in (lambda: quick_plan(session, [EIFFEL]), lambda: session.apply(plan.update), lm.identity):
        with pytest.raises(UnsupportedModelError, match="hooks on modules"):
            call()
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())
    handle.remove()
    session.apply(plan.update)
    put(lm.model)
    session.rollback()  # the way back is never closed
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())


def test_hooks_that_look_may_stay_and_are_asked_about_once(store: MomentStore) -> None:
    lm = build_tiny()
    seen: list[torch.Tensor] = []
    lm.model.model.layers[1].register_forward_hook(lambda module, args, out: seen.append(first_of(out).detach()))
    lm.model.enable_input_require_grads()
    lm.model(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True)  # which leaves hooks of transformers
    expected = quick_plan(EditSession(build_tiny(), store=store), [EIFFEL])
    lm = wrap(lm.model, lm.tokenizer)
    plan = quick_plan(EditSession(lm, store=store), [EIFFEL])
    for one, other in zip(plan.update.layers, expected.update.layers, strict=True):
        assert torch.equal(one.residuals, other.residuals)
    seen.clear()
    lm.weights_digest()
    assert seen == []


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("way", ["parametrization", "weight norm", "pruning"])
def test_a_weight_that_is_computed_is_refused(way: str, store: MomentStore) -> None:
    """What was written to it was gone at the next forward pass, or never there."""
    lm = build_tiny()
    late = EditableModel(lm.model, lm.tokenizer)
    session = EditSession(late, store=store)
    plan = quick_plan(session, [EIFFEL])
    layers = [part.layer for part in plan.update.layers]
    for layer in layers:
        module = lm.model.model.layers[layer].mlp.down_proj
        if way == "parametrization":
            parametrize.register_parametrization(module, "weight", nn.Identity())
        elif way == "weight norm":
            weight_norm(module)
        else:
            prune.random_unstructured(module, "weight", amount=0.5)
    with pytest.raises(UnsupportedModelError, match=r"down_proj is computed anew .*(original|weight_g|weight_orig)"):
        EditableModel(lm.model, lm.tokenizer)
    with pytest.raises((UnsupportedModelError, WeightsChangedError)):
        session.apply(plan.update)
    for layer in layers:
        module = lm.model.model.layers[layer].mlp.down_proj
        if way == "parametrization":
            parametrize.remove_parametrizations(module, "weight")
        elif way == "weight norm":
            nn.utils.remove_weight_norm(module)
        else:
            prune.remove(module, "weight")
    EditableModel(lm.model, lm.tokenizer)
