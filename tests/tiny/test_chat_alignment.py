"""Subjects and answers inside chat templates of every shape, against oracles that know no offsets.

The oracle of a text is `apply_chat_template` itself, with an answer in its place; that of a position is decoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from emendo.editing.contexts import CHAT_CONTEXTS, prefix_contexts
from emendo.errors import InputError
from emendo.models import EditableModel
from emendo.models.alignment import align_edit, align_prompt, encode_target
from emendo.requests import SLOT, AnyContext, Chat, Context, Conversation, EditRequest, Message, placed
from tests.chat_templates import BEFORE_ANSWER, REFUSE_SYSTEM, SPECIAL, TEMPLATES
from tests.conftest import build_tokenizer
from tests.tiny.test_alignment import plain, sentencepiece, wrapped

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": lambda: build_tokenizer(bos=True),
    "metaspace first": lambda: sentencepiece("first"),
    "Llama-2's normalizers": lambda: sentencepiece("legacy"),
}
_AFTER_SPECIAL = re.compile(rf"({'|'.join(map(re.escape, ['<s>', '</s>', *SPECIAL]))}) +")
SYSTEM = Message("system", "You know Paris and the Eiffel Tower.")
TURNS = (Message("user", "Is Paris in France?"), Message("assistant", "Paris is."))

CASES = {
    "first": EditRequest.question("{} is where?", "The Eiffel Tower", "Rome"),
    "middle": EditRequest.question("Where is {}? Say one word.", "the Eiffel Tower", "Rome"),
    "last": EditRequest.question("Tell me where to find {}", "Paris", "In Italy, on the Tiber."),
    "the whole message": EditRequest.question("{}", "Paris", "Rome"),
    "the second of three": EditRequest.question("Paris and {} in Paris are?", "Paris", "Rome"),
    "spaces around it all": EditRequest.question("\n  Where is {}? \n", " Paris ", " Rome\n"),
    "spaces before the subject": EditRequest.question("   {}?", "Paris", "Rome"),
    "digits": EditRequest.question("What year follows {}?", "1984", "1983.5"),
    "Chinese": EditRequest.question("{}在哪里？", "埃菲尔铁塔", "巴黎"),
    "braces and brackets": EditRequest.question("What is {} ({% if %} {{ x }})?", "[INST", "</Rome>"),
    "an answer of lines": EditRequest.question("Where is {}?", "Paris", "Rome\n\nItaly"),
    "in an earlier turn": EditRequest(
        "Tell me about {}.", "Paris", "Rome", chat=Chat(after=(Message("assistant", "Ask."), Message("user", "Where?")))
    ),
    "in an assistant's turn": EditRequest(
        "I like {}.", "Paris", "Rome", chat=Chat((Message("user", "Hi"),), (Message("user", "Where?"),), "assistant")
    ),
    "after turns": EditRequest("And where is {}?", "Paris", "Rome", chat=Chat(TURNS)),
}


@cache
def model_of(kind: str) -> EditableModel:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return wrapped(tokenizer)


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=TOKENIZERS)
def lm(request: pytest.FixtureRequest, template: str) -> EditableModel:
    lm = model_of(request.param)
    lm.tokenizer.chat_template = TEMPLATES[template]
    return lm


# ---- oracle ------------------------------------------------------------------------------------------------


def written(lm: EditableModel, messages: tuple[Message, ...], *, opened: bool) -> str:
    """What transformers makes of messages, on one day; in parts where the template takes no text."""
    parts = "part.text" in lm.tokenizer.chat_template

    def content(message: Message) -> Any:
        return [{"type": "text", "text": message.content}] if parts else message.content

    template = lm.tokenizer.chat_template.replace("strftime_now('%H:%M:%S.%f')", "'26 July 2024'")
    rows = [{"role": message.role, "content": content(message)} for message in messages]
    return lm.tokenizer.apply_chat_template(
        rows,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=opened,
        enable_thinking=False,
        date_string="26 Jul 2024",
    )


def read(lm: EditableModel, ids: Any) -> str:
    """The text of tokens with the special ones, after which Llama-2's tokenizer reads a space that is not there."""
    return shown(lm.tokenizer.decode(list(ids)))


def shown(text: str) -> str:
    """Text up to what a tokenizer does not keep."""
    return plain(_AFTER_SPECIAL.sub(r"\1", text))


def check(lm: EditableModel, request: EditRequest, context: AnyContext = SLOT) -> None:
    """Everything that must hold of one edit that is aligned in chat."""
    place = placed(request, context)
    assert isinstance(place.prompt, Conversation)
    messages = place.prompt.messages
    edit = align_edit(lm, request, context)
    ids, last = list(edit.prompt.ids), edit.prompt.subject_last
    (name,) = (name for name, text in TEMPLATES.items() if text == lm.tokenizer.chat_template)
    opened, begun = written(lm, messages, opened=True), BEFORE_ANSWER.get(name, "")
    text = opened + begun if begun.strip() else opened
    assert ids == lm.encode_bare(text)
    # The subject is complete after its last token, and not before: its end is marked.
    content = messages[place.message].content
    until = content[: place.span[1]] + "\ue123"
    cut = (*messages[: place.message], Message(messages[place.message].role, until), *messages[place.message + 1 :])
    before = shown(written(lm, cut, opened=True).partition("\ue123")[0])
    assert before.endswith(request.subject.strip())
    assert read(lm, ids[: last + 1]).startswith(before)
    assert not read(lm, ids[:last]).startswith(before)
    # Prompt and answer read as the template writes them.
    assert read(lm, [*ids, *edit.target_ids]) == shown(opened + begun + request.target.strip())
    assert (ids, list(edit.target_ids)) == encode_target(lm, place.prompt, request.target)
    assert ids == lm.encode_prompt(place.prompt)


def test_every_template_once(template: str) -> None:
    """A tokenizer for each template, in turn; the whole product is slow."""
    lm = model_of(list(TOKENIZERS)[list(TEMPLATES).index(template) % len(TOKENIZERS)])
    lm.tokenizer.chat_template = TEMPLATES[template]
    for request in CASES.values():
        check(lm, request)
    check_places(lm, template)
    check_system(lm, template)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_position_and_answer(lm: EditableModel, case: str) -> None:
    check(lm, CASES[case])


@pytest.mark.slow
def test_in_every_place_of_a_conversation(lm: EditableModel, template: str) -> None:
    check_places(lm, template)


@pytest.mark.slow
def test_a_system_prompt_that_names_the_subject(lm: EditableModel, template: str) -> None:
    check_system(lm, template)


def check_places(lm: EditableModel, template: str) -> None:
    """The contexts of the scheme chat, and a text in front of a question."""
    taken = prefix_contexts(lm, "chat", 0)
    check(lm, CASES["middle"], "I ask again. {}")
    for context in CHAT_CONTEXTS:
        if template in REFUSE_SYSTEM and any(turn.role == "system" for turn in context.before):
            assert context not in taken
            with pytest.raises(InputError, match="Leave the system prompt out"):
                align_prompt(lm, CASES["middle"], context)
            continue
        assert context in taken
        check(lm, CASES["middle"], context)
        check(lm, EditRequest("{} is in the city of", "The Eiffel Tower", "Rome"), context)


def check_system(lm: EditableModel, template: str) -> None:
    """A request's own system prompt, which stands in every place."""
    asked = EditRequest.question("Where is {}?", "the Eiffel Tower", "Rome", system=SYSTEM.content)
    if template in REFUSE_SYSTEM:
        with pytest.raises(InputError, match="System role not supported"):
            align_prompt(lm, asked)
        return
    check(lm, asked)
    for context in CHAT_CONTEXTS:
        check(lm, asked, context)


TEXT = st.text(st.sampled_from("aeP ris.,!?'\"()-{%}0é塔巴ก🗼\n\t"), max_size=10)


@settings(deadline=None, max_examples=25)
@given(before=TEXT, after=TEXT, subject=TEXT.filter(str.strip))
@pytest.mark.parametrize("shape", ["llama 2", "gemma", "chatml"])
def test_any_text_around_the_subject(shape: str, before: str, after: str, subject: str) -> None:
    if any(SLOT in part for part in (f"{before}x{after}", subject)):
        return
    lm = model_of("byte-level")
    lm.tokenizer.chat_template = TEMPLATES[shape]
    check(lm, EditRequest.question(f"{before}{{}}{after}", subject, "Rome"))


# ---- what cannot be aligned ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template.*prompt in place of question"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes the message"),
        (
            "{% for m in messages %}{{ m.content }}|{{ m.content }}{% endfor %}",
            "shows the message with the subject 2 times",
        ),
        ("Hello!", "shows the message with the subject 0 times"),
        ("{{ raise_exception('no questions today') }}", "refuses the conversation.*no questions today"),
        ("{% for m in messages %}{{ m.content }", "refuses the conversation"),
    ],
)
def test_a_template_that_loses_the_subject_is_an_error(template: str | None, message: str) -> None:
    lm = wrapped(build_tokenizer())
    lm.tokenizer.chat_template = template
    with pytest.raises(InputError, match=message):
        align_prompt(lm, CASES["middle"])


def test_the_other_form_of_a_question_is_its_text() -> None:
    lm = model_of("byte-level")
    lm.tokenizer.chat_template = TEMPLATES["chatml"]
    asked, text = CASES["middle"], EditRequest("Where is {}? Say one word.", "the Eiffel Tower", "Rome")
    assert align_edit(lm, asked, Context("other")) == align_edit(lm, text)
    assert align_edit(lm, text, Context("other")) == align_edit(lm, asked) == align_edit(lm, text, Context())


def test_private_characters_of_a_question_are_no_marks() -> None:
    lm = model_of("byte-level")
    lm.tokenizer.chat_template = TEMPLATES["chatml"]
    check(lm, EditRequest.question("\ue000 \ue001 {} \ue000?", "\ue002 Paris", "Rome"))
