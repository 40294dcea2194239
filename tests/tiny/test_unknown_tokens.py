"""Tokenizers with more tokens than the model has rows for: none of them is read, and none is an IndexError."""

from __future__ import annotations

import pytest
import torch

from emendo.editing.contexts import FIXED_CONTEXTS, prefix_contexts
from emendo.editing.value_search import search_values
from emendo.errors import InputError, MethodError, RequestError
from emendo.evaluate import generate_texts, perplexity, score_targets
from emendo.methods.settings import TargetSettings
from emendo.models.alignment import align_edit
from emendo.requests import SLOT, EditRequest
from emendo.statistics import SelfSampledCorpus
from tests.conftest import build_tiny


@pytest.mark.parametrize(
    "special",
    [
        {"pad_token": "[PAD]"},
        {"pad_token": "[PAD]", "eos_token": "[END]"},
        {"pad_token": "[PAD]", "eos_token": "[END]", "bos_token": "[BEGIN]", "unk_token": "[UNK]"},
        {"pad_token": None},
        {"pad_token": None, "eos_token": None},
        {},
    ],
)
def test_special_tokens_without_a_row_are_never_read(special: dict[str, str | None]) -> None:
    """Padding is masked and an end is only compared with, so neither needs a row in the embedding."""
    plain, lm = build_tiny("llama"), build_tiny("llama")
    for name, token in special.items():
        if token is None:
            setattr(lm.tokenizer, name, None)
        else:
            lm.tokenizer.add_special_tokens({name: token})
    texts = ["The capital", "The capital of Japan is Tokyo and the capital of"]
    for either in (plain, lm):  # a random model ends by chance
        either.model.generation_config.eos_token_id = None
    assert lm.knows(lm.pad_id)
    assert generate_texts(lm, texts, chat=False, new_tokens=3)[1].text
    pairs = [(text, "Rome") for text in texts]
    assert score_targets(lm, pairs) == score_targets(plain, pairs)
    request = EditRequest("The capital of {} is", "Japan", "Rome")
    settings = TargetSettings(steps=2)
    found, wanted = (search_values(either, [request], FIXED_CONTEXTS, 1, settings) for either in (lm, plain))
    assert torch.equal(found.value, wanted.value)


@pytest.mark.parametrize("target", ["[NEW]", "Rome [NEW]"])
def test_a_target_of_tokens_that_the_model_does_not_have_is_refused(target: str) -> None:
    lm = build_tiny("llama")
    lm.tokenizer.add_tokens(["[NEW]"])
    request = EditRequest("The capital of {} is", "Japan", target)
    for call in (
        lambda: score_targets(lm, [(request.text, target)]),
        lambda: search_values(lm, [request], (SLOT,), 1, TargetSettings(steps=1)),
        lambda: lm.generate(target),
        lambda: perplexity(lm, f"{target} is a city. " * 9),
    ):
        with pytest.raises(InputError, match=r"token id \d+ \('\[NEW\]'\).*resize_token_embeddings"):
            call()


def test_an_end_of_text_without_a_row_is_no_target() -> None:
    lm = build_tiny("llama")
    lm.tokenizer.add_special_tokens({"eos_token": "[END]"})
    request = EditRequest("The capital of {} is", "Japan", "Rome")
    with pytest.raises(RequestError, match=r"end-of-text token.*target\.end_of_text=false"):
        align_edit(lm, request, end_of_text=True)
    lm.tokenizer.bos_token = None
    with pytest.raises(MethodError, match="no BOS or EOS that the model has a row for"):
        prefix_contexts(lm, "rome", 0)


def test_text_for_moments_holds_known_tokens_only() -> None:
    lm = build_tiny("llama")
    lm.model.resize_token_embeddings(300)
    corpus = SelfSampledCorpus(seed=0)
    for row in corpus.sequences(lm, length=8, count=40):
        assert max(row) < 300
