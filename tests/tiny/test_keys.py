"""Keys and present values against one full, unpadded pass a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from emendo.editing import keys as keys_module
from emendo.editing.keys import context_weights, current_values, extract_keys
from emendo.methods.settings import KeySettings
from emendo.models import EditableModel
from emendo.models.alignment import align_prompt
from emendo.requests import EditRequest
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.pairs import pairs

REQUESTS = [
    EditRequest("The capital of {} is", "Japan", "Rome"),
    EditRequest("{} was born in", "Danielle Darrieux", "Paris"),
    EditRequest("Paris, the capital of {}", "Paris", "Rome"),
    EditRequest("{} was", "I", "the"),
]
CONTEXTS = ("{}", "The weather was calm. {}", "Therefore we opened the book again. {}", "I wrote this. {}")


def naive(lm: EditableModel, request: EditRequest, context: str, layer: int, what: str) -> Tensor:
    """One activation, read by its own hook from a pass over the whole sentence."""
    aligned = align_prompt(lm, request, context)
    found: list[Tensor] = []
    module = lm.model.get_submodule(lm.module_name(layer))
    if what == "key":
        handle = module.register_forward_pre_hook(lambda m, args: found.append(args[0]))
    elif what == "mlp_out":
        # A copy, since Falcon goes on to add to this tensor.
        handle = module.register_forward_hook(lambda m, args, out: found.append(out.clone()))
    else:
        block = lm.blocks[layer]
        handle = block.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([aligned.ids]))
    handle.remove()
    return found[0].view(len(aligned.ids), -1)[aligned.subject_last]  # OPT's MLP sees [batch × seq, ·]


def mean(rows: Sequence[Tensor], average: str) -> Tensor:
    if average == "flat":
        return sum(rows) / len(rows)
    return (rows[0] + sum(rows[1:]) / (len(rows) - 1)) / 2


@pytest.mark.parametrize("average", ["two_level", "flat"])
def test_keys_equal_one_pass_a_sentence(tiny: EditableModel, average: str) -> None:
    found = extract_keys(tiny, REQUESTS, CONTEXTS, [2], average)[2]
    assert found.mean.shape == found.plain.shape == (len(REQUESTS), tiny.d_in(2))
    for row, request in enumerate(REQUESTS):
        rows = [naive(tiny, request, context, 2, "key") for context in CONTEXTS]
        torch.testing.assert_close(found.mean[row], mean(rows, average), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.plain[row], rows[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("site", "residual"), pairs(["resid_post", "mlp_out"], ["plain", "mean"]))
def test_present_values_equal_one_pass_a_sentence(tiny: EditableModel, site: str, residual: str) -> None:
    settings = KeySettings(average="two_level", residual=residual)
    found = current_values(tiny, REQUESTS, CONTEXTS, 1, site, settings)
    for row, request in enumerate(REQUESTS):
        rows = [naive(tiny, request, context, 1, site) for context in CONTEXTS]
        expected = rows[0] if residual == "plain" else mean(rows, "two_level")
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_mean_value_belongs_to_the_mean_key(tiny: EditableModel) -> None:
    """W k̄ + b is the mean MLP output, so that a residual measured there is met at the mean key."""
    keys = extract_keys(tiny, REQUESTS, CONTEXTS, [1], "flat")[1].mean
    values = current_values(tiny, REQUESTS, CONTEXTS, 1, "mlp_out", KeySettings(average="flat", residual="mean"))
    bias = tiny.model.get_submodule(tiny.module_name(1)).bias
    expected = keys @ tiny.weight(1).T + (0 if bias is None else bias.detach())
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n", "average", "expected"),
    [
        (1, "two_level", [1.0]),
        (1, "flat", [1.0]),
        (6, "two_level", [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]),
        (21, "flat", [1 / 21] * 21),
    ],
)
def test_published_weights_of_contexts(n: int, average: str, expected: list[float]) -> None:
    weights = context_weights(n, average)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-15)


def test_the_subject_is_the_one_in_the_slot() -> None:
    """The same word stands in the prompt already; its key is another one."""
    lm = build_tiny("llama", bos=True)
    request = REQUESTS[2]
    aligned = align_prompt(lm, request)
    assert aligned.subject_last == len(aligned.ids) - 1
    earlier = align_prompt(lm, EditRequest("{}, the capital of Paris", "Paris", "Rome"))
    assert earlier.ids == aligned.ids
    assert earlier.subject_last < aligned.subject_last
    first = extract_keys(lm, [request], CONTEXTS[:1], [2], "flat")[2].plain
    second = extract_keys(lm, [EditRequest("{}, the capital of Paris", "Paris", "Rome")], CONTEXTS[:1], [2], "flat")[2]
    assert not torch.allclose(first, second.plain)


def test_order_and_packing_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_tiny("gpt2")
    straight = extract_keys(lm, REQUESTS, CONTEXTS, [2], "two_level")[2].mean
    monkeypatch.setattr(keys_module, "TOKEN_BUDGET", 1)
    order = [2, 0, 3, 1]
    other = extract_keys(lm, [REQUESTS[i] for i in order], CONTEXTS, [2], "two_level")[2].mean
    torch.testing.assert_close(other, straight[order], rtol=1e-4, atol=1e-5)


def test_equal_sentences_are_run_once() -> None:
    """Two targets for one prompt share their keys, and so do all words after the subject."""
    lm, rows = build_tiny("llama"), []
    lm.blocks[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    same = [
        EditRequest("The capital of {} is", "Japan", "Rome"),
        EditRequest("The capital of {} was", "Japan", "Paris"),
    ]
    found = extract_keys(lm, same, CONTEXTS, [2], "flat")[2].mean
    assert sum(rows) == len(CONTEXTS)
    assert torch.equal(found[0], found[1])


def test_keys_follow_the_model_and_leave_it_alone(tiny: EditableModel) -> None:
    tiny.model.train()
    tiny.tokenizer.padding_side = "left"
    before = model_state(tiny)
    original = extract_keys(tiny, REQUESTS, CONTEXTS, [2], "flat")[2].mean
    with tiny.edited({1: tiny.weight(1).flip(0)}):  # a scaled one would be undone by a norm behind it
        edited = extract_keys(tiny, REQUESTS, CONTEXTS, [2], "flat")[2].mean
    again = extract_keys(tiny, REQUESTS, CONTEXTS, [2], "flat")[2].mean
    assert not torch.allclose(edited, original, atol=1e-3)
    assert torch.equal(again, original)
    assert changes(before, model_state(tiny)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keys_are_float32_or_better(dtype: torch.dtype) -> None:
    lm = build_tiny("llama", dtype=dtype)
    wanted = torch.promote_types(dtype, torch.float32)
    assert extract_keys(lm, REQUESTS, CONTEXTS, [2], "flat")[2].mean.dtype == wanted
    assert current_values(lm, REQUESTS, CONTEXTS, 2, "resid_post", KeySettings()).dtype == wanted
