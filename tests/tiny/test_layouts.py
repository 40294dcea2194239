"""A layer stored as Conv1D [d_in, d_out] is edited as the same layer stored as Linear [d_out, d_in]."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from emendo.editing.session import EditSession
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny

REQUESTS = [
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The capital of {} is", "Japan", "Bordeaux"),
]
LAYERS = [1, 2]  # not the last: a target there cannot reach later tokens, and its search only follows rounding
QUICK = {"target.steps": 4, "contexts.scheme": "fixed", "moments.multiple": 4}


def with_linear_layers(lm: EditableModel) -> EditableModel:
    """A copy of a GPT-2 whose down-projections are Linear modules that compute the same."""
    copy = build_tiny("gpt2_square", dtype=torch.float64)
    for block in copy.model.transformer.h:
        conv = block.mlp.c_proj
        assert isinstance(conv, Conv1D)
        assert conv.weight.shape[0] == conv.weight.shape[1], "square, so the shape does not tell the layout"
        linear = nn.Linear(*conv.weight.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = conv.weight.data.T.contiguous(), conv.bias.data.clone()
        block.mlp.c_proj = linear
    return EditableModel(copy.model, lm.tokenizer, name="tiny-linear")


@pytest.mark.parametrize(("method", "layers"), [("rome", [1]), ("r-rome", [1]), ("emmet", LAYERS), ("memit", LAYERS)])
def test_conv1d_is_linear(method: str, layers: list[int], tmp_path: Path) -> None:
    conv = build_tiny("gpt2_square", dtype=torch.float64)
    linear = with_linear_layers(conv)
    more = {"distribution": "even"} if len(layers) > 1 else {}
    sessions = [EditSession(lm, store=MomentStore(tmp_path)) for lm in (conv, linear)]
    updates = [session.plan(REQUESTS, method, layers=layers, settings={**QUICK, **more}).update for session in sessions]
    for session, update in zip(sessions, updates, strict=True):
        session.apply(update)
    for layer, left, right in zip(layers, updates[0].layers, updates[1].layers, strict=True):
        delta = left.delta()
        scale = float(delta.abs().max())
        assert scale > 0
        assert float((delta - delta.T).abs().max()) > 0.1 * scale, "so a transposed update would show"
        torch.testing.assert_close(right.delta(), delta, rtol=0, atol=1e-6 * scale)
        stored = conv.model.transformer.h[layer].mlp.c_proj, linear.model.transformer.h[layer].mlp.c_proj
        torch.testing.assert_close(stored[0].weight.T, stored[1].weight, rtol=0, atol=1e-6 * scale)
        change = stored[1].weight.data - build_tiny("gpt2_square", dtype=torch.float64).weight(layer)
        torch.testing.assert_close(change, delta.double(), rtol=0, atol=1e-6 * scale)
    batch = conv.batch([[5, 9, 11, 30]])
    logits = [lm.model(batch.input_ids).logits for lm in (conv, linear)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
