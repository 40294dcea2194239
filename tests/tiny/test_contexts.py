"""Prefix contexts: of the shape that the papers sampled, a function of the seed, and without side effects."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from emendo.editing.contexts import FIXED_CONTEXTS, MEMIT_SEEDS, SCHEMES, prefix_contexts
from emendo.errors import MethodError
from emendo.models import EditableModel
from tests.conftest import build_tiny

SIZES = {"memit": 6, "rome": 21, "fixed": 6, "none": 1}
IN_CHAT = {"chat", "chat+raw"}  # tests/tiny/test_chat.py


@pytest.fixture(scope="module", params=["llama", "gpt2", "llama-bos"])
def lm(request: pytest.FixtureRequest) -> EditableModel:
    family, _, bos = request.param.partition("-")
    return build_tiny(family, bos=bool(bos))


def test_every_scheme_is_covered_here() -> None:
    assert {*SIZES, *IN_CHAT} == set(SCHEMES)


@pytest.mark.parametrize("scheme", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_plain_prompt_first_and_one_slot_at_the_end_of_each(lm: EditableModel, scheme: str, seed: int) -> None:
    contexts = prefix_contexts(lm, scheme, seed)
    assert len(contexts) == SIZES[scheme]
    assert contexts[0] == "{}"
    assert contexts.count("{}") == 1
    for context in contexts:
        assert context.count("{}") == 1
        assert context.endswith("{}")
        # No brace, line break or half of a character besides: a prompt in it stays one line.
        assert "{" not in context[:-2]
        assert "}" not in context[:-2]
        assert len(context.splitlines()) == 1
    for context in contexts[1:]:
        assert context.endswith(". {}")
        assert context == context.strip()


@pytest.mark.parametrize("scheme", ["memit", "rome"])
def test_a_seed_means_the_same_every_time_and_something_else_than_another(lm: EditableModel, scheme: str) -> None:
    first = prefix_contexts(lm, scheme, 0)
    torch.manual_seed(123)
    assert prefix_contexts(lm, scheme, 0) == first
    assert prefix_contexts(build_tiny(lm.spec.model_type, bos=lm.encode("a")[0] == 0), scheme, 0) == first
    others = {prefix_contexts(lm, scheme, seed) for seed in range(5)}
    assert len(others) == 5
    # Not only one of the texts: every one of them is sampled.
    assert all(any(other[index] != first[index] for other in others) for index in range(1, len(first)))


def test_another_model_gives_other_contexts(lm: EditableModel) -> None:
    other = build_tiny(lm.spec.model_type, bos=lm.encode("a")[0] == 0, seed=9)
    assert prefix_contexts(other, "memit", 0) != prefix_contexts(lm, "memit", 0)


def test_memit_contexts_begin_with_their_seed_words(lm: EditableModel) -> None:
    for context, word in zip(prefix_contexts(lm, "memit", 0)[1:], MEMIT_SEEDS, strict=True):
        assert context.startswith(word)


@pytest.mark.parametrize(("scheme", "lengths"), [("memit", [10] * 5), ("rome", [5] * 10 + [10] * 10)])
def test_sampled_texts_have_the_published_lengths(
    lm: EditableModel, monkeypatch: pytest.MonkeyPatch, scheme: str, lengths: list[int]
) -> None:
    decoded: list[int] = []
    decode = lm.decode
    monkeypatch.setattr(lm, "decode", lambda ids: (decoded.append(len(ids)), decode(ids))[1])
    prefix_contexts(lm, scheme, 0)
    assert sorted(decoded) == lengths


def test_braces_and_line_breaks_of_the_model_are_taken_out(lm: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["a {} b", "｛｝", "{{}\n\n\nx\r\ny", "\u2028z\u2029\t{", "}"])
    monkeypatch.setattr(lm, "decode", lambda ids: next(texts))
    contexts = prefix_contexts(lm, "memit", 0)
    assert sorted(contexts) == sorted(["{}", "a b. {}", ". {}", "x y. {}", "z. {}", ". {}"])


@pytest.mark.parametrize("scheme", ["memit", "rome", "fixed", "none"])
def test_nothing_else_changes(lm: EditableModel, scheme: str) -> None:
    """Neither anyone's random numbers nor the model: its weights, its training mode, its gradients, its hooks."""
    model = lm.model
    model.train()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    before = [parameter.detach().clone() for parameter in parameters]
    wanted = [parameter.requires_grad for parameter in parameters]
    python, numpy_state, state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    try:
        prefix_contexts(lm, scheme, 0)
        assert random.getstate() == python
        assert np.random.get_state()[1].tolist() == numpy_state
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled()
        assert all(module.training for module in model.modules())
        assert [parameter.requires_grad for parameter in parameters] == wanted
        assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        assert all(parameter.grad is None for parameter in parameters)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    finally:
        model.eval()
        parameters[0].requires_grad_(True)


def test_the_fixed_contexts_need_no_model(lm: EditableModel) -> None:
    assert prefix_contexts(lm, "fixed", 0) == prefix_contexts(lm, "fixed", 1) == FIXED_CONTEXTS


@pytest.mark.parametrize("scheme", ["", "MEMIT", "romex"])
def test_unknown_schemes_are_refused(lm: EditableModel, scheme: str) -> None:
    with pytest.raises(MethodError, match="expected one of memit, rome, fixed, none"):
        prefix_contexts(lm, scheme, 0)


def test_rome_needs_a_start_token() -> None:
    lm = build_tiny("llama")
    lm.tokenizer.bos_token = None
    assert len(prefix_contexts(lm, "rome", 0)) == 21  # documents that are separated by EOS start with it
    lm.tokenizer.eos_token = None
    with pytest.raises(MethodError, match=r"contexts\.scheme=memit"):
        prefix_contexts(lm, "rome", 0)
