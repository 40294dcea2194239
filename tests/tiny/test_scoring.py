"""Scoring and perplexity on tiny random models, against naive one-at-a-time oracles."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest
import torch

from emendo.errors import InputError, NumericalError, SelfCheckError
from emendo.evaluate import (
    TargetScore,
    evaluate_records,
    packaged_text,
    perplexity,
    score_targets,
    token_scores,
)
from emendo.evaluate import tokens as tokens_module
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.requests import EditRecord, EditRequest
from tests.conftest import build_tiny

PAIRS = [
    ("The Eiffel Tower is located in the city of", "Paris"),
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("The Eiffel Tower is located in the city of", "the capital of Italy"),
    ("The capital of Japan is", "Tokyo"),
    ("The capital", "of"),
    ("Danielle Darrieux, a native speaker of", "French, was born in Bordeaux"),
    ("You may have heard about it. The weather was calm that morning. I", "wrote"),
    ("埃菲尔铁塔位于", "巴黎"),
]


def naive_score(lm: EditableModel, prompt: str, target: str) -> TargetScore:
    """One unpadded pass of the whole model over prompt and target; float64 after the logits."""
    prompt_ids, target_ids = encode_target(lm, prompt, target)
    ids = torch.tensor([[*prompt_ids, *target_ids]], device=lm.device)
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0].double()
    at = logits[len(prompt_ids) - 1 : -1]
    wanted = torch.tensor(target_ids, device=lm.device)
    log_probs = at.log_softmax(dim=-1)[torch.arange(len(wanted)), wanted]
    return TargetScore(float(-log_probs.mean()), bool((at.argmax(dim=-1) == wanted).all()), len(wanted))


def naive_perplexity(lm: EditableModel, windows: list[list[int]]) -> tuple[float, int]:
    """exp of the mean nll of every token of a window but its first, and how many those are."""
    terms: list[float] = []
    for window in windows:
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([window])).logits[0].double()
        log_probs = logits.log_softmax(dim=-1)
        terms += [-float(log_probs[i, token]) for i, (_, token) in enumerate(pairwise(window))]
    return math.exp(sum(terms) / len(terms)), len(terms)


def assert_close(found: list[TargetScore], expected: list[TargetScore]) -> None:
    assert [score.nll for score in found] == pytest.approx([s.nll for s in expected], abs=1e-4)
    assert [(s.argmax, s.n_tokens) for s in found] == [(s.argmax, s.n_tokens) for s in expected]


class Recorder:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0
        self.finished = False

    def start(self, stage: str, total: int | None = None) -> None:
        self.total = total

    def advance(self, n: int = 1) -> None:
        self.done += n

    def finish(self) -> None:
        self.finished = True


def test_scores_agree_with_the_naive_scorer(tiny: EditableModel) -> None:
    assert_close(score_targets(tiny, PAIRS), [naive_score(tiny, *pair) for pair in PAIRS])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_agree_with_the_naive_scorer_behind_a_bos(family: str) -> None:
    lm = build_tiny(family, bos=True)
    assert_close(score_targets(lm, PAIRS), [naive_score(lm, *pair) for pair in PAIRS])


def test_a_greedy_continuation_is_argmax(tiny_llama: EditableModel) -> None:
    prompt = "The capital of Japan is"
    ids = tiny_llama.encode(prompt)
    hidden = tiny_llama.final_hidden(tiny_llama.batch([ids]))[:, -1]
    logits = tiny_llama.unembed(hidden)[0].detach()
    best = int(logits.argmax())
    found, hit = token_scores(tiny_llama, hidden, torch.tensor([0, 0]), torch.tensor([best, (best + 1) % 300]))
    assert hit.tolist() == [True, False]
    assert float(found[0]) == pytest.approx(float(logits.log_softmax(-1)[best]), abs=1e-5)


@pytest.mark.parametrize("token_budget", [1, 24, 10_000])
def test_batching_and_order_change_nothing(tiny_gpt2: EditableModel, token_budget: int) -> None:
    alone = {pair: score_targets(tiny_gpt2, [pair])[0] for pair in PAIRS}
    order = [*PAIRS, *PAIRS[:3]]
    random.Random(0).shuffle(order)
    found = score_targets(tiny_gpt2, order, token_budget=token_budget)
    assert [s.nll for s in found] == pytest.approx([alone[p].nll for p in order], abs=1e-5)
    assert [s.argmax for s in found] == [alone[p].argmax for p in order]


def test_the_tokenizers_padding_side_does_not_matter() -> None:
    right, left = build_tiny("llama"), build_tiny("llama")
    left.tokenizer.padding_side = "left"
    assert score_targets(left, PAIRS) == score_targets(right, PAIRS)


def test_chunked_unembedding_changes_nothing(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_targets(tiny_llama, PAIRS)
    for rows in (1, 3):
        monkeypatch.setattr(tokens_module, "LOGIT_BYTES", 4 * rows * tiny_llama.vocab_size)
        found = score_targets(tiny_llama, PAIRS)
        assert [s.nll for s in found] == pytest.approx([s.nll for s in whole], abs=1e-5)
        assert [s.argmax for s in found] == [s.argmax for s in whole]


def test_work_is_shared_and_nothing_is_computed_twice(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes: list[int] = []
    unembedded: list[int] = []
    run, unembed = tokens_module.tree_hidden, tiny_llama.unembed
    monkeypatch.setattr(
        tokens_module, "tree_hidden", lambda lm, forest: (nodes.append(len(forest.tokens)), run(lm, forest))[1]
    )
    monkeypatch.setattr(tiny_llama, "unembed", lambda h: (unembedded.append(len(h)), unembed(h))[1])
    prompt, other = "The capital of Japan is", "The capital of Italy is"
    single = [t for t in ("a", "b", "c", "d") if len(encode_target(tiny_llama, prompt, t)[1]) == 1]
    recorder = Recorder()
    pairs = [(text, target) for text in (prompt, other) for target in single for _ in range(2)]
    score_targets(tiny_llama, pairs, progress=recorder)
    one, two = tiny_llama.encode(prompt), tiny_llama.encode(other)
    shared = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    # Single-token targets add nothing to their prompt, and the prompts part where their subjects do.
    assert len(single) >= 2
    assert shared >= 3
    assert (sum(nodes), sum(unembedded)) == (len(one) + len(two) - shared, 2)
    assert (recorder.total, recorder.done, recorder.finished) == (2 * len(single), 2 * len(single), True)


def test_targets_of_several_tokens_share_what_they_begin_with(tiny_llama: EditableModel) -> None:
    prompt = "The Eiffel Tower is located in the city of"
    targets = ["Paris", "Paris and Rome", "Paris and Tokyo", "the capital of Italy", "the capital"]
    pairs = [(prompt, target) for target in targets]
    assert_close(score_targets(tiny_llama, pairs), [naive_score(tiny_llama, *pair) for pair in pairs])


def test_a_model_whose_blocks_do_more_is_refused(tiny_llama: EditableModel) -> None:
    forward = tiny_llama.decoder.forward

    def more(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.last_hidden_state = 1.1 * out.last_hidden_state
        return out

    tiny_llama.decoder.forward = more  # type: ignore[method-assign]
    with pytest.raises(SelfCheckError, match="do more than Emendo knows"):
        score_targets(tiny_llama, PAIRS)


def test_a_token_budget_of_nothing_is_refused(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match=r"token_budget is 0 .* at least 1"):
        score_targets(tiny_llama, PAIRS, token_budget=0)


def test_a_prompt_that_does_not_fit_is_named(tiny_llama: EditableModel) -> None:
    long = "word " * tiny_llama.max_length
    with pytest.raises(InputError, match=r"1 of 9 prompts do not fit 'tiny-llama'.*128 tokens"):
        score_targets(tiny_llama, [*PAIRS, (long, "Paris")])


def test_a_prompt_that_just_fits_is_scored(tiny_llama: EditableModel) -> None:
    # The target's last token is not fed, so it may lie beyond the last position.
    prompt = "The capital of Japan is"
    while len(tiny_llama.encode(prompt + " a")) <= tiny_llama.max_length:
        prompt += " a"
    assert len(tiny_llama.encode(prompt)) == tiny_llama.max_length
    assert math.isfinite(score_targets(tiny_llama, [(prompt, "a")])[0].nll)


@pytest.mark.parametrize("pair", [("", "Paris"), ("The capital is", " ")])
def test_empty_texts_are_refused(tiny_llama: EditableModel, pair: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="visible text"):
        score_targets(tiny_llama, [pair])


def test_a_broken_model_is_an_error(tiny_llama: EditableModel) -> None:
    broken = torch.full_like(tiny_llama.weight(1), math.nan)
    with tiny_llama.edited({1: broken}):
        with pytest.raises(NumericalError, match="roll the edit back"):
            score_targets(tiny_llama, PAIRS)
        with pytest.raises(NumericalError, match="finite"):
            perplexity(tiny_llama, "The capital of Japan is Tokyo.")


def test_scoring_leaves_the_model_as_it_was(tiny_llama: EditableModel) -> None:
    tiny_llama.model.train()
    before = {name: p.clone() for name, p in tiny_llama.model.named_parameters()}
    score_targets(tiny_llama, PAIRS)
    perplexity(tiny_llama, "The capital of Japan is Tokyo.")
    assert tiny_llama.model.training
    for name, parameter in tiny_llama.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
        assert parameter.grad is None


RECORDS = [
    EditRecord(
        EditRequest("The capital of {} is", "Japan", "Rome", id="japan"),
        target_true="Tokyo",
        paraphrase_prompts=("Japan, with the capital", "I wrote this down last year. Japan has"),
        neighborhood_prompts=("The capital of Italy is", "The capital of France is"),
    ),
    EditRecord(EditRequest("{}, a native speaker of", "Danielle Darrieux", "Japan")),
]


def test_records_are_scored_prompt_by_prompt(tiny_llama: EditableModel) -> None:
    result = evaluate_records(tiny_llama, RECORDS)
    first, second = result.records
    assert (first.id, second.id) == ("japan", "Danielle Darrieux")
    assert first.efficacy[0].prompt == "The capital of Japan is"
    assert [p.prompt for p in first.paraphrase] == list(RECORDS[0].paraphrase_prompts)
    for scored in (*first.efficacy, *first.paraphrase, *first.neighborhood):
        assert scored.target_true is not None
        assert_close(
            [scored.target, scored.target_true],
            [naive_score(tiny_llama, scored.prompt, target) for target in ("Rome", "Tokyo")],
        )
    assert second.efficacy[0].target_true is None
    assert (second.paraphrase, second.neighborhood) == ((), ())


def test_record_scores_aggregate_and_say_what_is_missing(tiny_llama: EditableModel) -> None:
    result = evaluate_records(tiny_llama, RECORDS, n_resamples=20)
    efficacy = result.records[0].efficacy[0]
    assert efficacy.target_true is not None
    assert 100 * (efficacy.target.nll < efficacy.target_true.nll) == result.scores.ES
    assert result.scores.counts["EA"] == 2
    assert any("1 of 2 records have no target_true" in note for note in result.scores.notes)
    row = json.loads(json.dumps(result.to_dict()))
    assert row["records"][0]["efficacy"][0]["target"]["nll"] == efficacy.target.nll
    assert row["scores"]["n"] == 2


def test_no_records_are_refused(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match="list of records is empty"):
        evaluate_records(tiny_llama, [])


TEXT = "The weather was calm that morning. The capital of Japan is Tokyo. " * 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_by_hand(family: str, bos: bool) -> None:
    lm = build_tiny(family, bos=bos)
    content = lm.encode_bare(TEXT)
    start = [0] if bos else []
    step = 16 - len(start)
    windows = [[*start, *content[i : i + step]] for i in range(0, len(content), step)]
    value, predicted = naive_perplexity(lm, windows)
    found = perplexity(lm, TEXT, window=16)
    assert found.predicted_tokens == predicted
    # With a BOS every token of the text is predicted, without one each window's first is not.
    assert predicted == len(content) - (0 if bos else len(windows))
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.nll == pytest.approx(math.log(value), abs=1e-4)
    assert found.window == 16


def test_perplexity_does_not_depend_on_batches(tiny_llama: EditableModel) -> None:
    values = [perplexity(tiny_llama, TEXT, window=10, token_budget=b).nll for b in (1, 33, 9999)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size(tiny_llama: EditableModel) -> None:
    tiny_llama.model.get_output_embeddings().weight.data.zero_()
    found = perplexity(tiny_llama, TEXT)
    assert found.value == pytest.approx(tiny_llama.vocab_size, rel=1e-5)


def test_perplexity_of_documents_does_not_cross_their_borders(tiny_llama: EditableModel) -> None:
    documents = ["The capital of Japan is Tokyo.", "I wrote this down last year.", "a"]
    windows = [tiny_llama.encode_bare(text) for text in documents[:2]]
    value, predicted = naive_perplexity(tiny_llama, windows)
    found = perplexity(tiny_llama, documents)
    assert (found.value, found.predicted_tokens) == (pytest.approx(value, rel=1e-4), predicted)


def test_max_tokens_reads_the_beginning(tiny_llama: EditableModel) -> None:
    recorder = Recorder()
    ids = tiny_llama.encode_bare(TEXT)[:20]
    value, _ = naive_perplexity(tiny_llama, [ids[:12], ids[12:]])
    found = perplexity(tiny_llama, [TEXT, TEXT], max_tokens=20, window=12, progress=recorder)
    assert (found.value, found.predicted_tokens) == (pytest.approx(value, rel=1e-4), 18)
    assert (recorder.total, recorder.done, recorder.finished) == (18, 18, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window must lie between 2 and 128"),
        ({"window": 129}, "window must lie between 2 and 128"),
        ({"max_tokens": 0}, "max_tokens is 0 .* at least 1"),
        ({"max_tokens": 1}, "nothing to predict"),
    ],
)
def test_perplexity_refuses(tiny_llama: EditableModel, settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        perplexity(tiny_llama, TEXT, **settings)


def test_the_packaged_text_is_plain_prose_and_works(tiny_llama: EditableModel) -> None:
    text = packaged_text()
    assert 600 <= len(text.split()) <= 950
    assert text.isascii()
    assert perplexity(tiny_llama, text, max_tokens=64).predicted_tokens == 63
