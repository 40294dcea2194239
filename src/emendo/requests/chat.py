"""Conversations: a request that is asked in chat, and the places that a prompt is put in.

A request is a text that the target continues, or a question that the target answers. A question is asked through the
model's own chat template (`emendo.models.chat`), which alone knows what stands around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from emendo.arguments import checked
from emendo.arguments.words import shown
from emendo.errors import RequestError
from emendo.requests.hints import SLOT

Role: TypeAlias = Literal["system", "user", "assistant"]

ROLES: tuple[Role, ...] = get_args(Role)

_CLOSING = "\"'”’»›)]}*_`"
_QUESTION_ENDS = "?？؟;⸮՞፧"
_SENTENCE_ENDS = f"{_QUESTION_ENDS}.!…。！।॥۔"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: Who speaks: ``"system"``, ``"user"`` or ``"assistant"``.
        content: What is said.

    Raises:
        RequestError: The role is unknown, or the content is not text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if problems := _message_problems(self.role, self.content):
            raise RequestError("this message cannot be used:", problems)

    def to_dict(self) -> dict[str, str]:
        """The message as chat programs write it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """What an answer follows: turns of a conversation, the last of them a user's.

    Args:
        messages: The turns, a system prompt first if there is one.

    Raises:
        RequestError: There is no turn, or the turns are in an order in which nothing is asked.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        if problems := _order_problems(self.messages):
            raise RequestError("this conversation cannot be used:", problems)

    @property
    def text(self) -> str:
        """The message that is answered."""
        return self.messages[-1].content


Prompt: TypeAlias = str | Conversation
"""What a model is asked: a text to be continued, or a conversation to be answered in the model's chat template."""


@dataclass(frozen=True)
class Chat:
    """The turns around the message that holds the subject's slot.

    Args:
        before: Earlier turns, a system prompt first if there is one.
        after: Later turns, up to the user's last message.
        role: Who says the message with the slot.

    Raises:
        RequestError: The turns are in an order in which nothing is asked.
    """

    before: tuple[Message, ...] = ()
    after: tuple[Message, ...] = ()
    role: Role = "user"

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        Conversation(self.around("-"))  # refuses an order in which nothing is asked

    @property
    def system(self) -> str | None:
        """The system prompt, if there is one."""
        return self.before[0].content if self.before and self.before[0].role == "system" else None

    @property
    def single(self) -> bool:
        """Whether it is one question, with or without a system prompt."""
        return self.role == "user" and not self.after and all(turn.role == "system" for turn in self.before)

    def around(self, content: str) -> tuple[Message, ...]:
        """All turns, with a content for the one that holds the slot."""
        return (*self.before, Message(self.role, content), *self.after)


@dataclass(frozen=True)
class Context:
    """Where a prompt is put, beyond a text in front of it.

    Args:
        form: ``"chat"``: in the model's chat template; ``"other"``: in the form that the request does not have, raw
            text for a question and the chat template for a text.
        text: Around the prompt, or around the message that it is, with one ``{}`` for it.
        before: Turns in front of it. A request's own system prompt stands in place of one of these.
    """

    form: Literal["chat", "other"] = "chat"
    text: str = SLOT
    before: tuple[Message, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        turns = {"before": [turn.to_dict() for turn in self.before]} if self.before else {}
        return {"form": self.form, "text": self.text, **turns}


def asked_with(system: str | None) -> Chat:
    """One question, under a system prompt if there is one."""
    return Chat(() if system is None else (Message("system", system),))


def stored_chat(messages: object, prompt: object) -> Chat:
    """The turns around a prompt, from the messages of a stored request.

    Raises:
        RequestError: They are no messages, or none of them is the prompt.
    """
    turns, problems = read_messages(messages)
    at = [place for place, turn in enumerate(turns) if turn.content == prompt]
    if not problems and len(at) != 1:
        problems = [f"one of messages must be the prompt, found {len(at)} times: {shown(prompt)}"]
    if problems:
        raise RequestError("this request's messages cannot be used:", problems)
    return Chat(turns[: at[0]], turns[at[0] + 1 :], turns[at[0]].role)


def chat_problems(chat: object, join: str) -> list[str]:
    """Every reason why these turns cannot stand around a request's prompt."""
    if not isinstance(chat, Chat):
        return [f"chat must be a Chat with the turns around the prompt, found {shown(chat)}"]
    found = []
    if join in ("space", "none"):
        found.append(f"join has no meaning for a question, whose template joins the answer, found {shown(join)}")
    others = [turn.content for turn in (*chat.before, *chat.after) if SLOT in turn.content]
    return found + [f"only one message may hold {{}}, and this one does too: {shown(text)}" for text in others]


AnyContext: TypeAlias = str | Context
"""A template with one ``{}`` for the whole prompt, as the request is asked; or a `Context`."""


@checked
def context_record(contexts: Sequence[AnyContext]) -> list[Any]:
    """Contexts as JSON values, as an update records them."""
    return [context if isinstance(context, str) else context.to_dict() for context in contexts]


@checked
def is_message(text: str) -> bool:
    """Whether a text says all that it says, as a question or a sentence does, rather than break off.

    The prompts beside a question are asked like it where they are; one that breaks off is a text to be continued.
    """
    return text.rstrip().rstrip(_CLOSING).rstrip()[-1:] in tuple(_SENTENCE_ENDS)


@checked
def is_question(text: str) -> bool:
    """Whether a text ends in a question mark of some script."""
    return text.rstrip().rstrip(_CLOSING).rstrip()[-1:] in tuple(_QUESTION_ENDS)


@checked
def prompt_text(prompt: Prompt) -> str:
    """How a prompt is shown: the text itself, or the message that is answered."""
    return prompt if isinstance(prompt, str) else prompt.text


def read_messages(rows: object) -> tuple[tuple[Message, ...], list[str]]:
    """Messages from plain values, or everything that is wrong with them.

    Args:
        rows: A list of objects with `role` and `content`.
    """
    if not isinstance(rows, list | tuple) or not rows:
        return (), [f"messages must be a list of objects with role and content, found {shown(rows)}"]
    found: list[Message] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            problems.append(f"message {number} must be an object with role and content, found {shown(row)}")
            continue
        own = [f"{name} is missing" for name in ("role", "content") if name not in row]
        own += [f"unknown field {shown(name)}; known: role, content" for name in row if name not in ("role", "content")]
        own = own or _message_problems(row["role"], row["content"])
        problems += [f"message {number}: {problem}" for problem in own]
        if not own:
            found.append(Message(row["role"], row["content"]))
    return tuple(found), problems


def _message_problems(role: object, content: object) -> list[str]:
    found = []
    if role not in ROLES:
        found.append(f"role must be one of {', '.join(ROLES)}, found {shown(role)}")
    if not isinstance(content, str) or not content.strip():
        found.append(f"content must be a non-empty string, found {shown(content)}")
    elif _half_surrogate(content):
        found.append(f"content holds half of a surrogate pair, which no tokenizer can read: {shown(content)}")
    return found


def _half_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _order_problems(messages: Sequence[Message]) -> list[str]:
    if not messages:
        return ["there is no message; expected at least a user's question"]
    found = []
    if any(message.role == "system" for message in messages[1:]):
        found.append("a system message must be the first one")
    if messages[-1].role != "user":
        found.append(f"the answer must follow a user's message, and follows one of the role {messages[-1].role!r}")
    return found
