"""Generated answers and free text on tiny models, against one row at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from emendo.errors import InputError
from emendo.evaluate import (
    entropy_of_records,
    generate_texts,
    generation_entropy,
    generation_scores,
    probe_scores,
    score_targets,
    token_entropy,
)
from emendo.evaluate.entropy import _Sampled
from emendo.evaluate.generated import GeneratedAnswer, GeneratedText
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.models.generation import continue_rows
from emendo.models.sampling import row_uniforms, sample_tokens
from emendo.requests import PROBE_KINDS, EditRecord, EditRequest, Join, Probe
from tests.conftest import build_tiny

PROMPTS = ["The capital of Japan is", "I wrote", "Danielle Darrieux, a native speaker of", "The capital of Japan is"]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def greedy(lm: EditableModel, ids: list[int], n: int) -> list[int]:
    """Token by token through the whole model, without a cache."""
    new: list[int] = []
    for _ in range(n):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*ids, *new]])).logits[0, -1]
        new.append(int(logits.argmax()))
    return new


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_texts_are_greedy_and_do_not_depend_on_batches(family: str) -> None:
    lm = build_tiny(family)
    lm.tokenizer.eos_token = None  # a random model says it by chance
    lm.model.generation_config.eos_token_id = None
    found = generate_texts(lm, PROMPTS, chat=False, new_tokens=5)
    assert [text.prompt for text in found] == PROMPTS
    assert [text.text for text in found] == [lm.decode(greedy(lm, lm.encode(p), 5)) for p in PROMPTS]
    assert found == generate_texts(lm, PROMPTS, chat=False, new_tokens=5, token_budget=1)
    assert not any(text.stopped for text in found)


def test_the_model_ends_its_own_answer(tiny_llama: EditableModel) -> None:
    ids = greedy(tiny_llama, tiny_llama.encode(PROMPTS[0]), 8)
    tiny_llama.model.generation_config.eos_token_id = ids[3]
    before = ids[: ids.index(ids[3])]
    (found,) = generate_texts(tiny_llama, PROMPTS[:1], chat=False, new_tokens=8)
    assert (found.text, found.stopped) == (tiny_llama.decode(before), True)


def test_a_continuation_ends_at_the_last_position(tiny_llama: EditableModel) -> None:
    row = tiny_llama.encode("The capital of Japan is " * 40)[: tiny_llama.max_length - 3]
    short = tiny_llama.encode("I wrote")
    long, other = continue_rows(tiny_llama, [row, short], [10, 10], stop=False)
    assert (len(long.ids), len(other.ids)) == (3, 10)
    assert list(other.ids) == greedy(tiny_llama, short, 10)


def test_chat_asks_through_the_template(tiny_llama: EditableModel) -> None:
    tiny_llama.tokenizer.chat_template = TEMPLATE
    text = f"user: {PROMPTS[0]}\nA:"
    ids = [0, *tiny_llama.encode_bare(text)]
    assert tiny_llama.encode_chat(PROMPTS[0]) == ids
    (found,) = generate_texts(tiny_llama, PROMPTS[:1], chat=True, new_tokens=4)
    assert (found.prompt, found.text) == (PROMPTS[0], tiny_llama.decode(greedy(tiny_llama, ids, 4)))


def test_chat_without_a_template_is_refused_in_words(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match=r"'tiny-llama' has no chat template.*chat=False"):
        generation_scores(tiny_llama, RECORDS, chat=True)


RECORDS = [
    EditRecord(
        EditRequest("The capital of {} is", "Japan", "Rome", id="japan"),
        target_true="Tokyo",
        paraphrase_prompts=("Japan, with the capital", "The city where Japan is governed:"),
        neighborhood_prompts=("The capital of Italy is",),
    ),
    EditRecord(
        EditRequest("{}, a native speaker of", "Danielle Darrieux", "Japan"), neighborhood_prompts=("Paris is",)
    ),
]


def test_generated_answers_are_judged_by_hand(tiny_llama: EditableModel) -> None:
    (said,) = generate_texts(tiny_llama, ["The capital of Japan is"], chat=False, new_tokens=4)
    records = [
        EditRecord(EditRequest("The capital of {} is", "Japan", said.text), "Tokyo", ("Japan, with the capital",)),
        *RECORDS,
    ]
    found = generation_scores(tiny_llama, records, chat=False, new_tokens=4)
    first = found.records[0]
    assert first.efficacy[0].text == said.text
    assert (first.efficacy[0].exact, first.efficacy[0].contained) == (True, True)
    assert first.measures()["neighborhood_exact"] is None
    texts = generate_texts(tiny_llama, RECORDS[0].paraphrase_prompts, chat=False, new_tokens=4)
    assert [answer.text for answer in found.records[1].paraphrase] == [text.text for text in texts]
    assert [answer.expected for answer in found.records[1].neighborhood] == [("Tokyo",)]
    # Without a true target there is nothing that a neighbour should say.
    assert found.records[2].neighborhood == ()
    values = [record.measures()["efficacy_exact"] for record in found.records]
    assert found.means.values["efficacy_exact"] == pytest.approx(100 * sum(map(float, values)) / 3)
    assert found.means.counts == {
        **dict.fromkeys(("efficacy_exact", "efficacy_contained"), 3),
        **dict.fromkeys(("paraphrase_exact", "paraphrase_contained"), 2),
        **dict.fromkeys(("neighborhood_exact", "neighborhood_contained"), 1),
    }
    row = json.loads(json.dumps(found.to_dict()))
    assert row["records"][0]["efficacy"][0]["text"] == said.text


def test_generation_refuses(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match="list of records is empty"):
        generation_scores(tiny_llama, [], chat=False)
    with pytest.raises(InputError, match=r"new_tokens is 0 .* at least 1"):
        generation_scores(tiny_llama, RECORDS, chat=False, new_tokens=0)


def taught(lm: EditableModel, prompt: str) -> str:
    """An answer of one token that the model is made to say after the prompt."""
    answer = next(a for a in "abcdef" if len(encode_target(lm, prompt, a)[1]) == 1)
    ids, (token,) = encode_target(lm, prompt, answer)
    hidden = lm.final_hidden(lm.batch([ids]))[0, -1]
    lm.model.get_output_embeddings().weight.data[token] = 10 * hidden
    return answer


def test_probes_are_right_where_any_answer_is(tiny_llama: EditableModel) -> None:
    prompt = "The capital of Japan is"
    answers = ("Tokyo", taught(tiny_llama, prompt))
    tokyo, own = score_targets(tiny_llama, [(prompt, answer) for answer in answers])
    assert (tokyo.argmax, own.argmax) == (False, True)
    record = EditRecord(
        RECORDS[0].request,
        probes=(
            Probe("portability", prompt, answers, group="alias"),
            Probe("portability", prompt, ("Tokyo",)),
            Probe("multi_hop", prompt, ("Tokyo", "Rome")),
        ),
    )
    found = probe_scores(tiny_llama, [record, RECORDS[1]], new_tokens=1)
    first, second, third = found.records[0]
    assert (first.argmax, first.group, first.nll) == (True, "alias", own.nll)
    assert first.generated is not None
    assert (first.generated.exact, first.generated.text) == (True, f" {answers[1]}")
    assert (second.argmax, second.best_answer) == (False, "Tokyo")
    assert third.argmax is False
    assert found.means.values["portability_argmax"] == 50.0
    assert found.means.values["multi_hop_contained"] == 0.0
    assert found.means.values["locality_argmax"] is None
    assert found.means.counts["portability_argmax"] == 1
    assert set(probe_scores(tiny_llama, [record]).means.values) == {f"{kind}_argmax" for kind in PROBE_KINDS}
    with pytest.raises(InputError, match="none of 1 records has a probe"):
        probe_scores(tiny_llama, [RECORDS[1]])


def test_sampled_rows_are_those_of_the_sampler(tiny_llama: EditableModel) -> None:
    generator = torch.Generator().manual_seed(3)
    starts = torch.randint(2, tiny_llama.vocab_size, (3, 4), generator=generator)
    uniform = torch.stack([row_uniforms(7, name, 20) for name in (5, 0, 9)])
    expected = sample_tokens(tiny_llama, starts, uniform, top_k=5)
    choose = _Sampled(7, (5, 0, 9), starts.tolist(), 20, 5)
    found = continue_rows(tiny_llama, starts.tolist(), [16] * 3, choose=choose, stop=False)
    assert [list(row.ids) for row in found] == expected[:, 4:].tolist()


def test_entropy_of_records(tiny_llama: EditableModel) -> None:
    prompts = [PROMPTS[:2], [], PROMPTS[2:]]
    found = entropy_of_records(tiny_llama, prompts, total_tokens=30)
    assert [len(record) for record in found.records] == [2, 0, 2]
    for texts, given in zip(found.records, prompts, strict=True):
        assert [text.prompt for text in texts] == given
        for text in texts:
            assert text.entropy == generation_entropy([text.prompt + text.continuation])
    means = [sum(text.entropy for text in texts) / 2 for texts in (found.records[0], found.records[2])]
    assert found.means.values["GE"] == pytest.approx(sum(means) / 2)
    assert (found.means.counts["GE"], found.top_k, found.seed) == (2, 5, 0)
    # Neither batches nor other records change a text; another seed does.
    assert entropy_of_records(tiny_llama, prompts, total_tokens=30, token_budget=1).records == found.records
    assert entropy_of_records(tiny_llama, prompts[:1], total_tokens=30).records == found.records[:1]
    assert entropy_of_records(tiny_llama, prompts, total_tokens=30, seed=1).records != found.records
    json.dumps(found.to_dict())


def test_greedy_texts_without_their_prompt(tiny_llama: EditableModel) -> None:
    found = entropy_of_records(tiny_llama, [PROMPTS[:1]], total_tokens=20, top_k=None, include_prompt=False)
    ids = tiny_llama.encode(PROMPTS[0])
    new = greedy(tiny_llama, ids, 20 - len(ids))
    (text,) = found.records[0]
    assert text.continuation == tiny_llama.decode(new)
    assert text.entropy == generation_entropy([text.continuation])
    assert text.token_entropy == token_entropy(new)


def test_entropy_refuses(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match="no record has a generation prompt"):
        entropy_of_records(tiny_llama, [[], []])
    with pytest.raises(InputError, match=r"top_k is 0 .* at least 1"):
        entropy_of_records(tiny_llama, [PROMPTS], top_k=0)
    with pytest.raises(InputError, match=r"no room within 3 tokens.*total_tokens="):
        entropy_of_records(tiny_llama, [PROMPTS], total_tokens=3)


@pytest.mark.parametrize(
    ("prompt", "text", "join", "exact"),
    [
        ("A ticket is $", "20.", "auto", True),
        ("A ticket is $", " 20.", "auto", False),
        ("A ticket is $", " 20.", "space", True),
        ("A ticket is $", "20.", "space", True),  # no word is glued to another
        ("A ticket is", "20.", "auto", False),
        ("A ticket is", "20.", "none", True),
        ("A ticket is", "20.", None, True),  # the answer to a message joins nothing
    ],
)
def test_an_answer_that_is_joined_otherwise_is_not_exact(
    prompt: str, text: str, join: Join | None, exact: bool
) -> None:
    """The same words, but not the text that an edit would have written."""
    answer = GeneratedAnswer.judged(GeneratedText(prompt, text, True), ["20"], join)
    assert (answer.exact, answer.contained) == (exact, True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_continuation_is_what_its_tokens_add(family: str) -> None:
    lm = build_tiny(family)
    for prompt in PROMPTS:
        ids = lm.encode(prompt)
        new = greedy(lm, ids, 4)
        assert lm.decode(ids) + lm.decode_after(ids, new) == lm.decode([*ids, *new])


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_answer(tiny_llama: EditableModel) -> None:
    with_space, without = generate_texts(tiny_llama, ["I wrote ", "I wrote"], chat=False, new_tokens=4)
    assert with_space.text == without.text


def test_the_cache_is_given_under_the_name_that_the_decoder_takes() -> None:
    """transformers 5.24 renamed it; both names give the same text."""
    lm = build_tiny("llama")
    said = lm.generate_many(["The capital of Japan is"], 6)
    (ours,) = set(lm.keeping(None)) - {"use_cache"}
    other = {"cache": "past_key_values", "past_key_values": "cache"}[ours]
    decoder: Any = lm.decoder
    forward, asked = decoder.forward, []

    def under_cache(input_ids: Any, cache: Any = None, **more: Any) -> Any:
        asked.append("cache")
        return forward(input_ids=input_ids, **{ours: cache}, **more)

    def under_past_key_values(input_ids: Any, past_key_values: Any = None, **more: Any) -> Any:
        asked.append("past_key_values")
        return forward(input_ids=input_ids, **{ours: past_key_values}, **more)

    decoder.forward = {"cache": under_cache, "past_key_values": under_past_key_values}[other]
    assert lm.generate_many(["The capital of Japan is"], 6) == said
    assert set(asked) == {other}
