"""The model's own chat template: what it puts around a question, and where the answer begins.

A template is a program of the model's authors. It trims what it is given or not, refuses a system prompt, demands turns
that alternate, opens an answer with a mark of its own. So nothing is assumed of its text: a subject is found by marks
that are put around it before the template runs, and the begin of the answer by what the template makes of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.arguments.words import shown
from emendo.errors import InputError
from emendo.requests import Conversation, Message

_SWITCHES = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}
"""Variables that templates know: the answer follows at once, without thinking aloud, on a day that stays the same."""

_SAME_DAY = "{% macro strftime_now(format) %}26 July 2024{% endmacro %}"
"""Stands in for the clock, which would give an edit other keys on another day."""

_MARKS = range(0xE000, 0xF8FF)
"""Characters for private use, which no text means."""


@dataclass(frozen=True)
class ChatText:
    """A conversation as the model reads it, up to where its answer begins.

    Attributes:
        text: The whole text, with the template's special tokens.
        joint: The whitespace that the template puts between it and an answer.
        span: First character of the subject in `text` and one past its last; None where none was asked for.
    """

    text: str
    joint: str
    span: tuple[int, int] | None = None


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        name: How messages call its model.

    Raises:
        InputError: It has no template.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {name!r} has no chat template, so it cannot be asked with one; expected a model "
                "tuned for chat. Ask with the raw prompt (prompt in place of question or messages, no --chat, "
                "chat=False) or load a chat model (--model)"
            )

    def whole(self, messages: Sequence[Message]) -> str:
        """The text of turns with nothing to be answered.

        Raises:
            InputError: The template refuses them.
        """
        return self._render(messages, opened=False)

    def opened(self, conversation: Conversation, subject: tuple[int, int] | None = None, message: int = 0) -> ChatText:
        """A conversation with its answer about to begin.

        Args:
            conversation: The turns.
            subject: Where the subject stands in one of the messages; None: nowhere.
            message: Which message that is.

        Raises:
            InputError: The template refuses the conversation, or changes the message so that its subject is lost.
        """
        messages = conversation.messages
        text = self._render(messages, opened=True)
        span = None if subject is None else self._find(messages, text, subject, message)
        text, joint = self._answer_begins(messages, text)
        return ChatText(text, joint, span)

    def takes(self, conversation: Conversation) -> bool:
        """Whether the template accepts a conversation and shows all of its messages."""
        try:
            text = self._render(conversation.messages, opened=True)
        except InputError:
            return False
        return all(message.content.strip() in text for message in conversation.messages)

    def _find(self, messages: Sequence[Message], text: str, subject: tuple[int, int], at: int) -> tuple[int, int]:
        """Where the subject stands in the text that the template has made."""
        marks = _unused(messages)
        begin, end = next(marks), next(marks)
        own, (first, last) = messages[at], subject
        content = f"{own.content[:first]}{begin}{own.content[first:last]}{end}{own.content[last:]}"
        marked = self._render([*messages[:at], Message(own.role, content), *messages[at + 1 :]], opened=True)
        found = marked.count(begin), marked.count(end)
        if found != (1, 1):
            raise InputError(
                f"the chat template of {self._name!r} shows the message with the subject {max(found)} times; expected "
                f"it once: {shown(own.content)}. Ask with a raw prompt, or put the subject into another message"
            )
        start, stop = marked.index(begin), marked.index(end) - 1
        if marked.replace(begin, "").replace(end, "") != text or text[start:stop] != own.content[first:last]:
            raise InputError(
                f"the chat template of {self._name!r} changes the message {shown(own.content)}, so that the place of "
                "its subject is not certain; expected a template that shows messages as they are. Use a raw prompt"
            )
        return start, stop

    def _answer_begins(self, messages: Sequence[Message], text: str) -> tuple[str, str]:
        """The text up to where an answer begins, and the whitespace before one.

        What the template writes between the call for an answer and the answer itself (a name of a channel, a closed
        thought) belongs to the text.
        """
        mark = next(_unused(messages))
        whole = self._render([*messages, Message("assistant", mark)], opened=False)
        if whole.count(mark) != 1:
            return text, ""
        answered, last = whole[: whole.index(mark)], messages[-1].content.strip()
        if answered.startswith(text):
            between = answered[len(text) :]
        elif (tail := text.rpartition(last)[2]) and (after := answered.rpartition(last)[2]).startswith(tail):
            between = after[len(tail) :]  # turns before are shown otherwise once there is an answer
        else:
            return text, ""
        return (text + between, "") if between.strip() else (text, between)

    def _render(self, messages: Sequence[Message], *, opened: bool) -> str:
        """The template's text; content goes in as text, and as a list of parts where the template shows no text."""
        text = self._run([message.to_dict() for message in messages], opened)
        if any(message.content.strip() in text for message in messages):
            return text
        parts = [{"role": message.role, "content": [{"type": "text", "text": message.content}]} for message in messages]
        try:
            in_parts = self._run(parts, opened)
        except InputError:
            return text
        return in_parts if any(message.content.strip() in in_parts for message in messages) else text

    def _run(self, messages: list[Any], opened: bool) -> str:
        try:
            template = self._tokenizer.get_chat_template()
            if "strftime_now" in template:
                template = _SAME_DAY + template
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=opened, **_SWITCHES
                )
            )
        except Exception as error:  # a template is a program of the model's authors, and may raise anything
            first = messages[0]
            hint = " Leave the system prompt out (system)." if first["role"] == "system" else ""
            raise InputError(
                f"the chat template of {self._name!r} refuses the conversation that begins with "
                f"{shown(first['content'])}: {error}; expected turns in an order that the template takes.{hint}"
            ) from error


def _unused(messages: Sequence[Message]) -> Iterator[str]:
    """Marks that are in none of the messages."""
    used = set().union(*(message.content for message in messages))
    return (mark for mark in map(chr, _MARKS) if mark not in used)
