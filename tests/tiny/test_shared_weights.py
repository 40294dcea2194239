"""A weight with two names: writing through one changes what the other reads, so the model is refused in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from emendo.errors import UnsupportedModelError
from emendo.models import EditableModel
from tests.conftest import build_tiny


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
