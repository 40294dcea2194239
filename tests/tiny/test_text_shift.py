"""Every token of texts, before and after an edit, against plain forward passes of each text alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from emendo.errors import InputError, NumericalError
from emendo.evaluate import TokenShift, perplexity, text_tokens, token_shift
from emendo.evaluate import text_drift as module
from emendo.models import EditableModel
from tests.conftest import build_tiny

TEXTS = [
    "The weather was calm that morning.",
    "The weather was calm",  # all of it is the beginning of another
    "The weather turned. Nobody had seen it come.",
    "明天会下雨。",
    "x",
]


def encoded(lm: EditableModel) -> list[list[int]]:
    return [lm.encode(text) for text in TEXTS]


def plain(lm: EditableModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)


def changed(lm: EditableModel, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = lm.weight(1)
    return weight + size * torch.randn(weight.shape, generator=generator)


def shifted(lm: EditableModel, size: float, **options: Any) -> TokenShift:
    before = text_tokens(lm, encoded(lm), **options)
    with lm.edited({1: changed(lm, size)}):
        return token_shift(before, text_tokens(lm, encoded(lm), **options))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("bos", [False, True])
def test_every_token_is_that_of_plain_forward_passes(family: str, bos: bool) -> None:
    lm = build_tiny(family, bos=bos)
    rows = encoded(lm)
    base = [plain(lm, ids) for ids in rows]
    found = shifted(lm, 0.3)
    with lm.edited({1: changed(lm, 0.3)}):
        edited = [plain(lm, ids) for ids in rows]
    for row, (text, position) in enumerate(found.places):
        p, q, token = base[text][position - 1], edited[text][position - 1], rows[text][position]
        assert float(found.nll_before[row]) == pytest.approx(-float(p[token]), rel=1e-4)
        assert float(found.nll_after[row]) == pytest.approx(-float(q[token]), rel=1e-4)
        assert float(found.kl[row]) == pytest.approx(math.fsum((p.exp() * (p - q)).tolist()), rel=1e-3, abs=1e-6)
        assert float(found.confidence[row]) == pytest.approx(float(p.max().exp()), rel=1e-4)
        assert (int(found.top_before[row]), int(found.top_after[row])) == (int(p.argmax()), int(q.argmax()))
    assert found.flipped.tolist() == (found.top_before != found.top_after).tolist()
    assert float(found.kl.mean()) > 1e-6


def test_a_beginning_that_texts_share_is_counted_once(tiny_llama: EditableModel) -> None:
    rows = encoded(tiny_llama)
    places = text_tokens(tiny_llama, rows).places
    prefixes = {tuple(ids[:end]) for ids in rows for end in range(2, len(ids) + 1)}
    assert len(places) == len(set(places)) == len(prefixes)
    assert {tuple(rows[text][: position + 1]) for text, position in places} == prefixes
    assert 1 not in {text for text, _ in places}


def test_perplexity_is_that_of_the_library(tiny_llama: EditableModel) -> None:
    ids = tiny_llama.encode(TEXTS[0])
    state = text_tokens(tiny_llama, [ids])
    found = token_shift(state, state)
    assert float(found.nll_before.mean()) == pytest.approx(perplexity(tiny_llama, TEXTS[0]).nll, rel=1e-5)
    assert float(found.kl.max()) == 0
    assert not found.flipped.any()


def test_the_budget_changes_no_value(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shifted(tiny_llama, 0.3)
    monkeypatch.setattr(module, "SHIFT_BYTES", 2 * 4 * tiny_llama.vocab_size)  # two places at a time
    parts = shifted(tiny_llama, 0.3, token_budget=4)
    assert parts.places == whole.places
    for name in ("nll_before", "nll_after", "kl"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-6)


def test_what_is_longer_than_the_model_is_cut(tiny_gpt2: EditableModel) -> None:
    ids = tiny_gpt2.encode(TEXTS[0]) * 100
    assert len(ids) > tiny_gpt2.max_length
    assert text_tokens(tiny_gpt2, [ids]).places[-1] == (0, tiny_gpt2.max_length - 1)


def test_states_that_cannot_be_compared_are_refused(tiny_llama: EditableModel) -> None:
    state = text_tokens(tiny_llama, encoded(tiny_llama))
    with pytest.raises(InputError, match="same texts"):
        token_shift(state, text_tokens(tiny_llama, encoded(tiny_llama)[:2]))
    with pytest.raises(InputError, match="at least two tokens"):
        text_tokens(tiny_llama, [[5], []])
    unembedding = tiny_llama.model.get_output_embeddings().weight
    with torch.no_grad():
        unembedding.mul_(2)
    try:
        with pytest.raises(InputError, match="unembedding"):
            token_shift(state, state)
    finally:
        with torch.no_grad():
            unembedding.div_(2)


def test_a_broken_model_is_named(tiny_llama: EditableModel) -> None:
    with tiny_llama.edited({1: torch.full_like(tiny_llama.weight(1), torch.inf)}), pytest.raises(NumericalError):
        text_tokens(tiny_llama, encoded(tiny_llama))
