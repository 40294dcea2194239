"""The end of a target's word: which tokens end one, and a search that asks for it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from emendo.editing.objective import InjectionSite, Terms, value_problem
from emendo.editing.value_cache import search_identity
from emendo.editing.value_search import search_values
from emendo.ledger.edits import StoredEdit
from emendo.ledger.replay import kept_method
from emendo.methods import DEFAULT_METHOD, METHODS, MethodConfig, resolve_method
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel, adding
from emendo.models.alignment import align_edit
from emendo.models.suffix import packed_attention
from emendo.models.word_end import ends_in_word, word_end_tokens
from emendo.requests import EditRequest
from tests.conftest import FAMILIES, build_tiny
from tests.kinds import kinds

CONTEXTS = ("{}", "The weather was calm. {}")
WORD = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
OTHER = EditRequest("You may have heard about {}, the capital of", "Paris", "of Italy")
SETTINGS = TargetSettings(steps=6, learning_rate=0.3, max_norm_ratio=2.0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_token_ends_a_word_or_goes_on_with_it(family: str) -> None:
    lm = build_tiny(family)
    ends = word_end_tokens(lm)
    assert ends.shape == (lm.vocab_size,)
    seen = set()
    for token in set(range(len(ends))) - set(lm.tokenizer.all_special_ids):
        first = lm.tokenizer.decode([*lm.encode_bare("a"), token])[1:2]
        kind = "end" if first in set(" .,()") else "within" if first.isalnum() or first in set("-_'") else None
        if kind is not None:
            assert bool(ends[token]) is (kind == "end"), first
            seen.add(kind)
    assert seen == {"end", "within"}
    assert all(ends[token] for token in lm.stop_ids)
    assert 0 < int(ends.sum()) < len(ends)


@pytest.mark.parametrize(
    ("target", "word"),
    [("Rome", True), ("20", True), ("of Rome ", True), ("Rome.", False), ("巴黎", False), ("โรม", False)],
)
def test_only_words_and_numbers_have_an_end(target: str, word: bool) -> None:
    assert ends_in_word(replace(WORD, target=target)) is word


@pytest.mark.parametrize("enough", [1.0, 0.3])
@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_the_term_is_what_the_model_gives_to_all_ends(family: str, enough: float) -> None:
    """And 0 in each context where that is enough."""
    lm = build_tiny(family, dtype=torch.float64)
    groups, entry = [[WORD, OTHER], [replace(OTHER, subject="Tokyo")]], InjectionSite.at(lm, 1, "resid_post")
    totals = []
    for weight in (0.0, 0.7):
        problem, init = value_problem(lm, groups, CONTEXTS, entry, word_end=weight > 0)
        with packed_attention(lm):
            delta = torch.zeros_like(init)
            totals.append(problem.losses(lm, delta, init.norm(dim=2), Terms(word_end=weight, enough=enough)).total)
    ends = word_end_tokens(lm)
    for number, group in enumerate(groups):
        terms = []
        for request in group:
            for context in CONTEXTS:
                edit = align_edit(lm, request, context)
                with torch.no_grad():
                    ids = torch.tensor([[*edit.prompt.ids, *edit.target_ids]])
                    logp = lm.model(input_ids=ids).logits[0, -1].double().log_softmax(0)
                terms.append((math.log(enough) - logp[ends].logsumexp(0)).clamp_min(0))
        expected = 0.7 * torch.stack(terms).mean()
        torch.testing.assert_close(totals[1][number] - totals[0][number], expected, rtol=1e-4, atol=1e-5)


def probability_of_end(lm: EditableModel, request: EditRequest, weight: float) -> float:
    """After the target with the δ that a search finds."""
    settings = replace(SETTINGS, steps=25, max_norm_ratio=20.0, kl_weight=0.0, weight_decay=0.0, loss_threshold=0.0)
    settings = replace(settings, word_end_weight=weight)
    found = search_values(lm, [request], CONTEXTS, 1, settings)
    edit = align_edit(lm, request)
    ids = torch.tensor([[*edit.prompt.ids, *edit.target_ids]])
    added = torch.zeros(ids.shape[1], lm.d_model, dtype=found.delta.dtype)
    added[edit.prompt.subject_last] = found.delta[0]
    with torch.no_grad(), adding(lm, 1, mlp=added):
        probabilities = lm.model(input_ids=ids).logits[0, -1].softmax(0)
    return float(probabilities[word_end_tokens(lm)].sum())


def test_a_search_makes_the_word_end() -> None:
    lm = build_tiny("llama")
    without, asked = (probability_of_end(lm, WORD, weight) for weight in (0.0, 30.0))
    assert asked > without + 0.05


def test_targets_without_an_end_are_searched_as_before() -> None:
    lm = build_tiny("llama")
    request = replace(WORD, target="Rome.")
    one, other = (
        search_values(lm, [request], CONTEXTS, 1, replace(SETTINGS, word_end_weight=weight)) for weight in (0.0, 1.0)
    )
    assert torch.equal(one.value, other.value)
    assert one.traces == other.traces


def test_a_target_that_does_not_run_on_is_searched_as_before() -> None:
    """Up to rounding: its sequences have one token more, and products of other shapes round differently."""
    lm = build_tiny("llama", dtype=torch.float64)
    one, content, asked = (
        search_values(lm, [WORD], CONTEXTS, 1, replace(SETTINGS, word_end_weight=weight, word_end_enough=enough))
        for weight, enough in ((0.0, 1.0), (1.0, 1e-9), (1.0, 1.0))
    )
    torch.testing.assert_close(one.value, content.value, rtol=1e-9, atol=1e-9)
    assert [len(trace.losses) for trace in one.traces] == [len(trace.losses) for trace in content.traces]
    assert float((one.value - asked.value).abs().max()) > 1e-3


def test_a_stop_by_argmax_waits_for_the_end() -> None:
    """With the tokens of the target alone as the argmax from the first step on, the search goes on."""
    lm = build_tiny("llama")
    free = search_values(lm, [WORD], ("{}",), 1, replace(SETTINGS, steps=40, argmax_steps=0, word_end_weight=1e-9))
    plain = search_values(lm, [WORD], ("{}",), 1, replace(SETTINGS, steps=40, argmax_steps=0))
    assert len(free.traces[0].losses) >= len(plain.traces[0].losses)


def test_requests_in_one_batch_and_alone_are_the_same() -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    settings = replace(SETTINGS, word_end_weight=1.0, argmax_steps=0)
    requests = [WORD, replace(OTHER, target="of Italy."), replace(OTHER, subject="Tokyo")]
    together = search_values(lm, requests, CONTEXTS, 1, settings)
    for row, request in enumerate(requests):
        alone = search_values(lm, [request], CONTEXTS, 1, settings)
        torch.testing.assert_close(together.value[row], alone.value[0], rtol=1e-6, atol=1e-8)


def test_an_edit_kept_before_the_setting_is_planned_without_it() -> None:
    lm = build_tiny("llama")
    resolved = resolve_method("emendo", lm).to_dict()
    added = ("target.word_end_weight", "target.word_end_enough")
    assert resolved["settings"][added[0]] == 1.0
    settings = {name: value for name, value in resolved["settings"].items() if name not in added}
    method, _ = kept_method(StoredEdit("0" * 64, {0: WORD}, {**resolved, "settings": settings}, seed=0))
    assert isinstance(method, MethodConfig)
    assert method.target.word_end_weight == 0.0
    assert replace(method.target, word_end_weight=METHODS["emendo"].target.word_end_weight).steps == 25


def test_words_are_made_to_end_by_the_default_method_alone() -> None:
    """The others are what their papers say."""
    assert [name for name, method in METHODS.items() if method.target.word_end_weight] == [DEFAULT_METHOD]


def test_tokens_are_read_once_and_anew_where_some_were_added() -> None:
    lm = build_tiny("llama")
    first = word_end_tokens(lm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(lm.tokenizer), "batch_decode", None)
        assert torch.equal(word_end_tokens(lm), first)
    lm.tokenizer.add_tokens(["?!"])
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    assert bool(word_end_tokens(lm)[-1])


def test_a_search_without_it_is_the_search_of_before() -> None:
    lm = build_tiny("llama")
    plain, asked = (
        search_identity(lm, [WORD], CONTEXTS, 1, replace(SETTINGS, word_end_weight=weight)) for weight in (0.0, 1.0)
    )
    assert "word_end_weight" not in plain["settings"]
    assert asked["settings"]["word_end_weight"] == 1.0
