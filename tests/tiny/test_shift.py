"""Next-token distributions of base and edited models, and zsRE, against plain float64 versions."""

from __future__ import annotations

import json
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from emendo.errors import InputError, NumericalError
from emendo.evaluate import drift as shift_module
from emendo.evaluate import (
    measure_drift,
    next_token_log_probs,
    perplexity,
    score_tokens,
    text_log_probs,
    zsre_scores,
)
from emendo.models import EditableModel
from emendo.models import tree as tree_module
from emendo.models.alignment import encode_target
from emendo.requests import EditRecord, EditRequest, Probe
from tests.conftest import build_tiny

PROMPTS = [
    "The capital of Japan is",
    "The capital of Italy is",
    "The capital",
    "Danielle Darrieux, a native speaker of",
    "I wrote this down last",
]
TEXT = "The weather was calm that morning. The capital of Japan is Tokyo. " * 2


def plain_log_probs(lm: EditableModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)


def kl(p: torch.Tensor, q: torch.Tensor) -> list[float]:
    return [math.fsum((row.exp() * (row - other)).tolist()) for row, other in zip(p, q, strict=True)]


def changed(lm: EditableModel, size: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = lm.weight(1)
    return weight + size * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "bloom"])
def test_divergence_is_that_of_plain_forward_passes(family: str) -> None:
    lm = build_tiny(family)
    rows = [lm.encode(prompt) for prompt in PROMPTS]
    base = torch.stack([plain_log_probs(lm, ids)[-1] for ids in rows])
    before = next_token_log_probs(lm, PROMPTS)
    with lm.edited({1: changed(lm, 0.3)}):
        edited = torch.stack([plain_log_probs(lm, ids)[-1] for ids in rows])
        found = measure_drift(before, next_token_log_probs(lm, PROMPTS))
    assert found.kl == pytest.approx(kl(base, edited), rel=1e-3, abs=1e-8)
    assert found.flipped == tuple((base.argmax(dim=-1) != edited.argmax(dim=-1)).tolist())
    assert found.mean == pytest.approx(sum(found.kl) / len(PROMPTS))
    assert (found.p99, found.largest) == (pytest.approx(float(np.quantile(found.kl, 0.99))), max(found.kl))
    assert found.flips == sum(found.flipped) / len(PROMPTS)
    assert json.loads(json.dumps(found.to_dict()))["n"] == len(PROMPTS)
    assert found.mean > 1e-6


def test_a_small_change_is_not_lost_in_rounding() -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    before = next_token_log_probs(lm, PROMPTS)
    values = []
    for size in (1e-3, 1e-4):
        with lm.edited({1: changed(lm, size)}):
            values.append(measure_drift(before, next_token_log_probs(lm, PROMPTS)).mean)
    # KL is quadratic in a small change.
    assert values[0] / values[1] == pytest.approx(100, rel=0.1)


def test_no_change_is_no_shift(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = next_token_log_probs(tiny_llama, PROMPTS)
    monkeypatch.setattr(shift_module, "SHIFT_BYTES", 2 * 4 * tiny_llama.vocab_size)  # two places at a time
    found = measure_drift(before, next_token_log_probs(tiny_llama, PROMPTS))
    assert max(found.kl) < 1e-9
    assert found.flips == 0
    assert found.flips_interval == (0.0, pytest.approx(3.8415 / (5 + 3.8415), abs=1e-4))


def test_log_probs_are_the_models_own(tiny_gpt2: EditableModel) -> None:
    taken = next_token_log_probs(tiny_gpt2, PROMPTS)
    found = torch.cat([chunk for _, chunk in taken.chunks()])
    expected = torch.stack([plain_log_probs(tiny_gpt2, tiny_gpt2.encode(prompt))[-1] for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert taken.top.tolist() == expected.argmax(dim=-1).tolist()


@pytest.mark.parametrize("bos", [False, True])
def test_positions_of_held_out_text(bos: bool) -> None:
    lm = build_tiny("llama", bos=bos)
    taken = text_log_probs(lm, TEXT, window=16)
    # Every token but each window's first is predicted from the position before it: the perplexity again.
    content = lm.encode_bare(TEXT)
    prefix = [0] if bos else []
    step = 16 - len(prefix)
    windows = [[*prefix, *content[i : i + step]] for i in range(0, len(content), step)]
    assert len(taken.places) == sum(map(len, windows))
    rows = iter(torch.cat([chunk for _, chunk in taken.chunks()]))
    terms = []
    for window in windows:
        own = [next(rows) for _ in window]
        terms += [float(own[place][token]) for place, token in enumerate(window[1:])]
    assert -math.fsum(terms) / len(terms) == pytest.approx(perplexity(lm, TEXT, window=16).nll, abs=1e-5)
    assert len(text_log_probs(lm, TEXT, window=16, every=4).places) == sum(
        math.ceil(len(window) / 4) for window in windows
    )


class Outputs:
    """Final hidden states of every forward pass, and how many of them are still in memory when the next is made."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Any]] = []
        self.most_alive = 0

    def watched(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same values in an array that lives as long as any view of it."""
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.made))
        array = hidden.numpy().copy()
        self.made.append(weakref.ref(array))
        return torch.from_numpy(array)


def test_prompts_do_not_keep_the_hidden_states_of_their_trees(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next_token_log_probs(tiny_llama, PROMPTS)
    outputs, replay = Outputs(), tree_module.replay
    monkeypatch.setattr(tree_module, "replay", lambda *args, **kwargs: outputs.watched(replay(*args, **kwargs)))
    found = next_token_log_probs(tiny_llama, PROMPTS, token_budget=1)
    assert len(outputs.made) == len(PROMPTS)
    assert outputs.most_alive <= 1, "that of the tree before, until the next is there"
    torch.testing.assert_close(found.hidden, whole.hidden, rtol=1e-4, atol=1e-4)


def test_windows_of_a_text_do_not_keep_the_hidden_states_of_their_batches(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = text_log_probs(tiny_llama, TEXT, window=8, every=3)
    outputs, final_hidden = Outputs(), tiny_llama.final_hidden
    monkeypatch.setattr(tiny_llama, "final_hidden", lambda batch: outputs.watched(final_hidden(batch)))
    found = text_log_probs(tiny_llama, TEXT, window=8, every=3)
    assert len(outputs.made) >= 3
    assert outputs.most_alive <= 1
    assert torch.equal(found.hidden, every.hidden)


def test_a_changed_unembedding_is_noticed(tiny_llama: EditableModel) -> None:
    before = next_token_log_probs(tiny_llama, PROMPTS)
    tiny_llama.model.get_output_embeddings().weight.data.mul_(1.5)
    with pytest.raises(InputError, match="unembedding of 'tiny-llama' has changed"):
        measure_drift(before, next_token_log_probs(tiny_llama, PROMPTS))


def test_two_models_may_stand_side_by_side() -> None:
    base, edited = build_tiny("llama"), build_tiny("llama")
    edited.model.get_output_embeddings().weight.data.mul_(1.5)
    found = measure_drift(next_token_log_probs(base, PROMPTS), next_token_log_probs(edited, PROMPTS))
    rows = [base.encode(prompt) for prompt in PROMPTS]
    p, q = (torch.stack([plain_log_probs(lm, ids)[-1] for ids in rows]) for lm in (base, edited))
    assert found.kl == pytest.approx(kl(p, q), rel=1e-3)


def test_shifts_refuse(tiny_llama: EditableModel) -> None:
    before = next_token_log_probs(tiny_llama, PROMPTS)
    with pytest.raises(InputError, match="5 before and 4 after"):
        measure_drift(before, next_token_log_probs(tiny_llama, PROMPTS[1:]))
    with pytest.raises(InputError, match="of other prompts"):
        measure_drift(before, next_token_log_probs(tiny_llama, PROMPTS[::-1]))
    with pytest.raises(InputError, match="no prompt"):
        next_token_log_probs(tiny_llama, [])
    with pytest.raises(InputError, match="1 of 6 prompts do not fit"):
        next_token_log_probs(tiny_llama, [*PROMPTS, "word " * 200])
    with pytest.raises(InputError, match="at least 1"):
        text_log_probs(tiny_llama, TEXT, every=0)
    with tiny_llama.edited({1: torch.full_like(tiny_llama.weight(1), math.nan)}), pytest.raises(NumericalError):
        next_token_log_probs(tiny_llama, PROMPTS)


def naive_token_accuracy(lm: EditableModel, prompt: str, target: str) -> float:
    prompt_ids, target_ids = encode_target(lm, prompt, target)
    best = plain_log_probs(lm, [*prompt_ids, *target_ids]).argmax(dim=-1).tolist()
    return sum(best[len(prompt_ids) - 1 + j] == token for j, token in enumerate(target_ids)) / len(target_ids)


def test_zsre_against_one_question_at_a_time(tiny_llama: EditableModel) -> None:
    question = "The capital of Japan is"
    greedy = tiny_llama.generate(question, 4)
    records = [
        EditRecord(
            EditRequest("The capital of {} is", "Japan", f"{greedy} and of Italy"),
            paraphrase_prompts=("Japan, with the capital", "The capital"),
            probes=(
                Probe("locality", "I wrote this down last", ("year", "month")),
                Probe("portability", "Japan lies", ("in Asia",)),
            ),
        ),
        EditRecord(EditRequest("{}, a native speaker of", "Danielle Darrieux", "French")),
    ]
    found = zsre_scores(tiny_llama, records)
    first, second = found.records
    target = records[0].request.target
    assert 0 < first.efficacy < 1
    assert first.efficacy == naive_token_accuracy(tiny_llama, question, target)
    paraphrases = [naive_token_accuracy(tiny_llama, prompt, target) for prompt in records[0].paraphrase_prompts]
    assert first.paraphrase == pytest.approx(sum(paraphrases) / 2)
    assert first.locality == naive_token_accuracy(tiny_llama, "I wrote this down last", "year")
    assert (second.paraphrase, second.locality) == (None, None)
    assert found.means.values["efficacy"] == pytest.approx(50 * (first.efficacy + second.efficacy))
    assert found.means.counts == {"efficacy": 2, "paraphrase": 1, "locality": 1, "score": 1}
    assert set(json.loads(json.dumps(found.to_dict()))["scores"]) >= {"efficacy", "score", "intervals"}
    with pytest.raises(InputError, match="list of records is empty"):
        zsre_scores(tiny_llama, [])


def test_token_scores_name_what_is_predicted_instead(tiny_llama: EditableModel) -> None:
    prompt, target = "The capital of Japan is", "Tokyo and Rome"
    prompt_ids, target_ids = encode_target(tiny_llama, prompt, target)
    log_probs = plain_log_probs(tiny_llama, [*prompt_ids, *target_ids])[len(prompt_ids) - 1 : -1]
    (found,) = score_tokens(tiny_llama, [(prompt, target)])
    assert found.targets == tuple(target_ids)
    assert found.predicted == tuple(log_probs.argmax(dim=-1).tolist())
    assert found.log_probs == pytest.approx(log_probs[range(len(target_ids)), target_ids].tolist(), abs=1e-4)
