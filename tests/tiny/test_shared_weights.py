"""A weight with two names: writing through one changes what the other reads, so the model is refused in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from emendo.editing.session import EditSession
from emendo.errors import UnsupportedModelError, WeightsChangedError
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.quick_plans import EIFFEL, quick_plan


def same_module(model: Any) -> None:
    model.model.layers[2].mlp.down_proj = model.model.layers[1].mlp.down_proj


def same_parameter(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight


def same_block(model: Any) -> None:
    model.model.layers[2] = model.model.layers[1]


def same_mlp(model: Any) -> None:
    model.model.layers[2].mlp = model.model.layers[1].mlp


def two_views(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.weight = nn.Parameter(model.model.layers[1].mlp.down_proj.weight.detach())


def overlapping_views(model: Any) -> None:
    rows, columns = model.model.layers[1].mlp.down_proj.weight.shape
    pool = torch.randn(rows + 8, columns) * 0.1
    for layer, begin in ((1, 0), (2, 8)):
        model.model.layers[layer].mlp.down_proj.weight = nn.Parameter(pool[begin : begin + rows])


def another_kind_of_module(model: Any) -> None:
    model.model.layers[2].mlp.up_proj.weight = nn.Parameter(model.model.layers[2].mlp.down_proj.weight.detach().T)


def bits_of(model: Any) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


WAYS = [same_module, same_parameter, same_block, same_mlp, two_views, overlapping_views, another_kind_of_module]


@pytest.mark.parametrize("share", WAYS, ids=lambda way: way.__name__)
def test_a_weight_that_two_modules_use_is_refused_by_both_names(share: Callable[[Any], None]) -> None:
    lm = build_tiny()
    share(lm.model)
    with pytest.raises(UnsupportedModelError, match=r"layers\.[12]\.mlp\.\S+ and \S+layers\.2\.mlp\.\S+ share one"):
        EditableModel(lm.model, lm.tokenizer)


def test_the_copy_that_the_error_tells_of_is_accepted() -> None:
    lm = build_tiny()
    same_module(lm.model)
    lm.model.model.layers[2].mlp.down_proj = copy.deepcopy(lm.model.model.layers[2].mlp.down_proj)
    same_parameter(lm.model)
    module = lm.model.model.layers[2].mlp.down_proj
    module.weight = torch.nn.Parameter(module.weight.detach().clone())
    EditableModel(lm.model, lm.tokenizer)


def test_neighbours_in_one_memory_and_tied_embeddings_are_no_sharing() -> None:
    lm = build_tiny()
    rows, columns = lm.model.model.layers[1].mlp.down_proj.weight.shape
    pool = torch.randn(2 * rows, columns) * 0.1
    for layer, begin in ((1, 0), (2, rows)):
        lm.model.model.layers[layer].mlp.down_proj.weight = nn.Parameter(pool[begin : begin + rows])
    lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    EditableModel(lm.model, lm.tokenizer)


@pytest.mark.parametrize("share", WAYS, ids=lambda way: way.__name__)
def test_what_is_shared_later_is_noticed_before_anything_is_planned_or_written(
    share: Callable[[Any], None], store: MomentStore
) -> None:
    """Also where both layers had the same numbers before, so that no sum of weights tells of it."""
    built = build_tiny()
    with torch.no_grad():
        for name, part in built.model.model.layers[2].named_parameters():
            part.copy_(built.model.model.layers[1].get_parameter(name))
    lm = EditableModel(built.model, built.tokenizer)
    session = EditSession(lm, store=store)
    plan = quick_plan(session, [EIFFEL])
    share(lm.model)
    shared = bits_of(lm.model)
    for call in (lambda: session.apply(plan.update), lambda: quick_plan(session, [EIFFEL]), session.accept_weights):
        with pytest.raises((WeightsChangedError, UnsupportedModelError), match=r"layers\.[12]"):
            call()
        assert bits_of(lm.model) == shared


def another_activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def another_mlp(model: Any) -> None:
    old = model.model.layers[1].mlp
    model.model.layers[1].mlp = copy.copy(old)  # the same weights, in another module


def another_forward(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


def one_more_module(model: Any) -> None:
    model.model.layers[1].mlp.down_proj = nn.Sequential(model.model.layers[1].mlp.down_proj)


@pytest.mark.parametrize(
    "exchange", [another_activation, another_mlp, another_forward, one_more_module], ids=lambda way: way.__name__
)
def test_a_module_that_was_exchanged_is_noticed(exchange: Callable[[Any], None], store: MomentStore) -> None:
    lm = build_tiny()
    session = EditSession(lm, store=store)
    plan = quick_plan(session, [EIFFEL])
    exchange(lm.model)
    before = bits_of(lm.model)
    for call in (lambda: session.apply(plan.update), lambda: quick_plan(session, [EIFFEL]), session.accept_weights):
        with pytest.raises(WeightsChangedError, match=r"layers\.1\.mlp") as refused:
            call()
        assert bits_of(lm.model) == before
    if exchange is not one_more_module:  # whose weight no plan can reach
        assert "emendo.wrap(model, tokenizer)" in str(refused.value)
        anew = EditSession(EditableModel(lm.model, lm.tokenizer), store=store)
        anew.apply(quick_plan(anew, [EIFFEL]).update)


def test_embeddings_may_be_resized(store: MomentStore) -> None:
    lm = build_tiny()
    session = EditSession(lm, store=store)
    lm.model.resize_token_embeddings(lm.vocab_size + 8)
    session.accept_weights()
    session.apply(quick_plan(session, [EIFFEL]).update)
