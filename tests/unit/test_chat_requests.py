"""Requests that are asked in chat: read from every kind of file, stored and read back, and refused in words."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from emendo.datasets import parse_records, read_records
from emendo.errors import ConflictError, DatasetError, RequestError
from emendo.experiments.data import records_digest
from emendo.requests import (
    Chat,
    Conversation,
    EditRecord,
    EditRequest,
    Message,
    check_requests,
    in_chat,
    is_message,
    is_question,
    record_from_dict,
    requests_of,
)
from tests.every import every

QUESTION = {"question": "Where is {}?", "subject": "the Eiffel Tower", "answer": "Rome"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Tell me about the Eiffel Tower."},
    {"role": "assistant", "content": "A tower of iron."},
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "Rome"},
]
EXPECTED = EditRequest.question("Where is {}?", "the Eiffel Tower", "Rome")
IN_TURNS = EditRequest(
    "Tell me about {}.",
    "the Eiffel Tower",
    "Rome",
    chat=Chat(
        (Message("system", "Be brief."),), (Message("assistant", "A tower of iron."), Message("user", "Where is it?"))
    ),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("facts.jsonl", json.dumps(QUESTION)),
        ("facts.json", json.dumps([{**QUESTION, "question": "Where is the Eiffel Tower?"}])),
        ("facts.json", json.dumps({"facts": [QUESTION]})),
        ("facts.csv", "question,subject,answer\nWhere is {}?,the Eiffel Tower,Rome\n"),
        ("facts.tsv", "Question\tSubject\tTarget\nWhere is the Eiffel Tower?\tthe Eiffel Tower\tRome\n"),
        ("facts.yaml", "- question: Where is {}?\n  subject: the Eiffel Tower\n  answer: Rome\n"),
        ("facts.json", json.dumps({"question": ["Where is {}?"], "subject": ["the Eiffel Tower"], "answer": ["Rome"]})),
    ],
)
def test_a_question_is_read_from_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert [record.request for record in read_records(path)] == [EXPECTED]


def test_messages_are_read_from_json_and_from_a_cell(tmp_path: Path) -> None:
    row = {"messages": TURNS, "subject": "the Eiffel Tower"}
    cell = json.dumps(TURNS).replace('"', '""')
    for name, text in {"a.jsonl": json.dumps(row), "a.csv": f'messages,subject\n"{cell}",the Eiffel Tower\n'}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert [record.request for record in read_records(tmp_path / name)] == [IN_TURNS]


def test_a_system_prompt_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text("question,subject,answer,system,paraphrase\nWhere is {}?,Paris,Rome,Be brief.,Paris is where?\n")
    (record,) = read_records(path)
    assert record.request.asked == Conversation((Message("system", "Be brief."), Message("user", "Where is Paris?")))
    assert record.paraphrase_prompts == ("Paris is where?",)


def test_a_library_takes_the_same_rows() -> None:
    assert requests_of([QUESTION, {"messages": TURNS, "subject": "the Eiffel Tower"}]) == [EXPECTED, IN_TURNS]


BAD: dict[str, dict[str, Any]] = {
    "prompt and question are given; give one": {**QUESTION, "prompt": "{} is in"},
    "answer and target are both given": {**QUESTION, "target": "Rome"},
    "question must hold exactly one {} for the subject, found 0": {**QUESTION, "question": "Where is it?"},
    "target is missing": {"question": "Where is {}?", "subject": "Paris"},
    "subject is missing": {"messages": TURNS},
    "system must be a non-empty string, found ' '": {**QUESTION, "system": " "},
    "there is no question": {"prompt": "{} is", "subject": "Paris", "target": "Rome", "system": "Be brief."},
    "join has no meaning for a question": {**QUESTION, "join": "none"},
    "system goes with a question; among messages": {"messages": TURNS, "subject": "Paris", "system": "x"},
    "messages must be a list of objects": {"messages": "hello", "subject": "Paris"},
    "message 1: role must be one of system, user, assistant, found 'bot'": {
        "messages": [{"role": "bot", "content": "Paris?"}],
        "subject": "Paris",
    },
    "message 1: content is missing": {"messages": [{"role": "user"}], "subject": "Paris"},
    "message 2: content must be a non-empty string": {
        "messages": [TURNS[1], {"role": "assistant", "content": ""}],
        "subject": "the Eiffel Tower",
    },
    "message 1: unknown field 'name'": {
        "messages": [{"role": "user", "content": "{}", "name": "x"}],
        "subject": "Paris",
        "target": "Rome",
    },
    "the answer must follow a user's message": {"messages": TURNS[:3] + TURNS[4:], "subject": "the Eiffel Tower"},
    "a system message must be the first one": {"messages": [*TURNS[1:3], TURNS[0], *TURNS[3:]], "subject": "iron"},
    "the answer is given twice": {"messages": TURNS, "subject": "the Eiffel Tower", "target": "Oslo"},
    "one message before the answer must hold {}": {"messages": TURNS, "subject": "the Louvre"},
    "only one message may hold {}": {
        "messages": [{"role": "system", "content": "{}"}, {"role": "user", "content": "{}?"}],
        "subject": "Paris",
        "target": "Rome",
    },
}


@every("problem", BAD)
def test_what_cannot_be_asked_is_told_in_words(tmp_path: Path, problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        record_from_dict(BAD[problem])
    assert problem in str(refused.value)
    if "both given" in problem or problem.startswith("subject"):
        return
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{json.dumps(QUESTION)}\n{json.dumps(BAD[problem])}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2"):
        read_records(path)


@pytest.mark.parametrize("request_", [EXPECTED, IN_TURNS, EditRequest("{} is in", "Paris", "Rome")])
def test_a_request_is_stored_and_read_back(request_: EditRequest) -> None:
    assert EditRequest.from_dict(json.loads(json.dumps(request_.to_dict()))) == request_
    assert record_from_dict(request_.to_dict()).request == request_
    record = EditRecord(request_, "Paris", ("Where?",))
    assert record_from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_stored_text_is_what_it_was() -> None:
    text = EditRequest("{} is in", "Paris", "Rome")
    assert text.to_dict() == {"id": "", "prompt": "{} is in", "subject": "Paris", "target": "Rome", "join": "auto"}
    known = "40b1270101c006782a0817331864967d4ac8dcb066e3a350c3d6b176ef0cfc4b"
    assert records_digest([EditRecord(text)]) == known  # as before requests could be asked in chat
    assert records_digest([EditRecord(text)]) != records_digest([in_chat(EditRecord(text))])


def test_messages_that_do_not_hold_the_prompt_are_refused() -> None:
    row = {**EXPECTED.to_dict(), "messages": [{"role": "user", "content": "Who is {}?"}]}
    with pytest.raises(RequestError, match="one of messages must be the prompt, found 0 times"):
        EditRequest.from_dict(row)


def test_a_question_and_its_text_are_two_facts() -> None:
    text = EditRequest("Where is {}?", "the Eiffel Tower", "Oslo")
    check_requests([EXPECTED, text])
    with pytest.raises(ConflictError):
        check_requests([EXPECTED, EditRequest.question("Where  is {}?", "the Eiffel Tower", "Oslo")])
    check_requests([EXPECTED, EditRequest.question("Where is {}?", "the Eiffel Tower", "Oslo", system="Lie.")])


def test_other_prompts_of_a_question_are_asked_like_it_where_they_are_messages() -> None:
    request = EditRequest.question("Where is {}?", "the Eiffel Tower", "Rome", system="Be brief.")
    system = Message("system", "Be brief.")
    assert request.asking("Name its city.") == Conversation((system, Message("user", "Name its city.")))
    assert request.asking("The tower stands in") == "The tower stands in"
    assert request.asking(request.text) == request.asked
    assert IN_TURNS.asking("Where?") == Conversation((system, Message("user", "Where?")))
    text = EditRequest("{} is in", "Paris", "Rome")
    assert text.asking("Where is Paris?") == "Where is Paris?"


@pytest.mark.parametrize("text", ["Where?", "Say it.", 'He asked "Where?"', "在哪里？", "أين؟", "**Where?** ", "Go!"])
def test_a_text_that_ends_is_a_message(text: str) -> None:
    assert is_message(text)


@pytest.mark.parametrize("text", ["The tower is in", "It costs $", "", "He said “", "A, B and"])
def test_a_text_that_breaks_off_is_none(text: str) -> None:
    assert not is_message(text)
    assert not is_question(text)


def test_records_can_be_put_into_chat() -> None:
    record = EditRecord(EditRequest("Where is {}?", "Paris", "Rome", join="space"))
    asked = in_chat(record, system="Be brief.")
    assert asked.request == EditRequest.question("Where is {}?", "Paris", "Rome", system="Be brief.")
    assert in_chat(asked) == asked


def test_the_packaged_questions_are_the_packaged_facts() -> None:
    folder = resources.files("emendo") / "data"
    facts, asked = (
        parse_records((folder / name).read_text(encoding="utf-8"), name)
        for name in ("demo_facts.jsonl", "demo_questions.jsonl")
    )
    check_requests([record.request for record in asked])
    for fact, question in zip(facts, asked, strict=True):
        assert (question.request.target, question.target_true) == (fact.request.target, fact.target_true)
        assert question.request.chat == Chat()
        assert question.request.subject.removeprefix("the ") in fact.request.text
        assert len(question.neighborhood_prompts) == len(fact.neighborhood_prompts)
        for prompt in (*question.paraphrase_prompts, *question.neighborhood_prompts):
            assert is_question(prompt)
