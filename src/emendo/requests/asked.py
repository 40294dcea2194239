"""Rows that are asked in chat: a question and its answer, or messages that end in the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from emendo.arguments.words import shown
from emendo.errors import RequestError
from emendo.requests.chat import Chat, Message, asked_with, read_messages, stored_chat
from emendo.requests.hints import SLOT
from emendo.requests.records import ASKED_FIELDS

_WAYS = ("prompt", "question", "messages")

Read = tuple[Mapping[str, Any], Chat | None, list[str]]
"""A row that has a prompt and, where it can, a target; the turns around the prompt; and what is wrong."""


def with_conversation(row: Mapping[str, Any]) -> Read:
    """A row with its question, or its messages, as a prompt and the turns around it.

    Args:
        row: The fields of a record; one without a question or messages stays as it is.
    """
    given = [name for name in _WAYS if name in row]
    if not row.keys() & set(ASKED_FIELDS):
        return row, None, []
    rest = {name: value for name, value in row.items() if name not in ASKED_FIELDS}
    if given == ["prompt", "messages"]:
        with suppress(RequestError):  # a stored request has both
            return rest, stored_chat(row["messages"], row["prompt"]), []
    if len(given) > 1:
        told = f"{', '.join(given[:-1])} and {given[-1]} are given"
        return rest, None, [f"{told}; give one: a prompt is continued, a question or messages are asked in chat"]
    if "messages" in row:
        if "system" in row:
            return rest, None, ["system goes with a question; among messages write it as the first one"]
        return _from_messages(rest, row["messages"])
    if "question" not in row:
        return rest, None, ["system is the system prompt of a question, and there is no question"]
    system = row.get("system")
    if system is None:
        return {**rest, "prompt": row["question"]}, Chat(), []
    try:
        return {**rest, "prompt": row["question"]}, asked_with(system), []
    except RequestError:
        return (
            {**rest, "prompt": row["question"]},
            Chat(),
            [f"system must be a non-empty string, found {shown(system)}"],
        )


def _from_messages(rest: dict[str, Any], rows: object) -> Read:
    messages, problems = read_messages(rows)
    if problems:
        return rest, None, problems
    if messages[-1].role == "assistant":
        answer = messages[-1].content
        if rest.get("target", answer) != answer:
            return (
                rest,
                None,
                [f"the answer is given twice: {shown(answer)} ends messages, and target is {shown(rest['target'])}"],
            )
        rest, messages = {**rest, "target": answer}, messages[:-1]
    at, messages = _slot(messages, rest.get("subject"))
    if at is None:
        return (
            rest,
            None,
            [
                "one message before the answer must hold {} in the place of the subject, or the subject once; found "
                f"neither in {shown([turn.content for turn in messages])}"
            ],
        )
    try:
        chat = Chat(messages[:at], messages[at + 1 :], messages[at].role)
    except RequestError as error:
        return rest, None, list(error.problems)
    return {**rest, "prompt": messages[at].content}, chat, []


def _slot(messages: tuple[Message, ...], subject: object) -> tuple[int | None, tuple[Message, ...]]:
    """Which message holds the slot, which is put in where the subject stands once; None where that is not certain."""
    held = [place for place, turn in enumerate(messages) if SLOT in turn.content]
    if held:
        return held[0], messages  # a second one is told by the request
    if not isinstance(subject, str) or not subject.strip():
        return None, messages
    found = [
        (place, match.start())
        for place, turn in enumerate(messages)
        for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", turn.content)
    ]
    if len(found) != 1:
        return None, messages
    place, start = found[0]
    text = messages[place].content
    turn = Message(messages[place].role, f"{text[:start]}{SLOT}{text[start + len(subject) :]}")
    return place, (*messages[:place], turn, *messages[place + 1 :])
