"""Which facts a model answers, against one unpadded float64 pass a fact."""

from __future__ import annotations

import pytest
import torch

from emendo.errors import InputError
from emendo.evaluate import answered
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.requests import EditRecord, EditRequest

PROMPTS = ("The capital of {} is", "{} is located in the city of", "{}, a native speaker of", "I wrote about {} in")
SUBJECTS = ("Japan", "The Eiffel Tower", "Danielle Darrieux")
WORDS = ("Paris", "Rome", "the capital of Italy", "Tokyo", "was", "of")


def log_probs(lm: EditableModel, prompt: str, target: str) -> tuple[float, bool]:
    """Mean log-probability of a target's tokens and whether each is the argmax."""
    prompt_ids, target_ids = encode_target(lm, prompt, target)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*prompt_ids, *target_ids]])).logits[0].double()
    at = logits[len(prompt_ids) - 1 : -1]
    wanted = torch.tensor(target_ids)
    chosen = at.log_softmax(dim=-1)[torch.arange(len(wanted)), wanted]
    return float(chosen.mean()), bool((at.argmax(dim=-1) == wanted).all())


def likely_word(lm: EditableModel, prompt: str) -> str:
    """The text of the most likely next token that the tokenizer reads back as that token alone."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([lm.encode(prompt)])).logits[0, -1]
    text = lm.decode([int(logits.argmax())])
    return text if text.strip() else "Paris"


@pytest.fixture
def records(tiny_llama: EditableModel) -> list[EditRecord]:
    """Twelve facts; every other one has what the model says as its true target."""
    made = []
    for number, (prompt, subject) in enumerate((p, s) for p in PROMPTS for s in SUBJECTS):
        request = EditRequest(prompt, subject, WORDS[number % 6], str(number))
        true = likely_word(tiny_llama, request.text) if number % 2 else WORDS[(number + 1) % 6]
        made.append(EditRecord(request, true))
    return made


def test_argmax_is_every_token_of_the_true_target(tiny_llama: EditableModel, records: list[EditRecord]) -> None:
    expected = [r for r in records if log_probs(tiny_llama, r.request.text, r.target_true or "")[1]]
    assert 0 < len(expected) < len(records), "the facts must tell the two apart"
    assert answered(tiny_llama, records) == tuple(expected)
    assert answered(tiny_llama, records[::-1], token_budget=8) == tuple(expected[::-1])


def test_probability_is_the_true_target_above_the_new_one(tiny_llama: EditableModel, records: list[EditRecord]) -> None:
    expected = [
        record
        for record in records
        if log_probs(tiny_llama, record.request.text, record.target_true or "")[0]
        > log_probs(tiny_llama, record.request.text, record.request.target)[0]
    ]
    assert 0 < len(expected) < len(records)
    assert answered(tiny_llama, records, level="probability") == tuple(expected)


def test_a_tie_is_not_answered(tiny_llama: EditableModel) -> None:
    same = EditRecord(EditRequest("The capital of {} is", "Japan", "Tokyo"), "Tokyo")
    assert answered(tiny_llama, [same], level="probability") == ()


def test_records_without_a_true_target_are_refused(tiny_llama: EditableModel, records: list[EditRecord]) -> None:
    unknown = EditRecord(EditRequest("{} is", "Japan", "Tokyo", "u"))
    with pytest.raises(InputError, match=r"1 of 13 records have no target_true.*'u'"):
        answered(tiny_llama, [*records, unknown])
    with pytest.raises(InputError, match=r"level is 'top5' .* expected 'argmax' or 'probability'"):
        answered(tiny_llama, records, level="top5")  # type: ignore[arg-type]
    assert answered(tiny_llama, []) == ()
