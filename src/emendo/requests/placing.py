"""Where a request's prompt and its subject stand once it is put into a context."""

from __future__ import annotations

from dataclasses import dataclass

from emendo.arguments import checked
from emendo.requests.chat import AnyContext, Context, Conversation, Message, Prompt
from emendo.requests.hints import SLOT
from emendo.requests.joining import continuation
from emendo.requests.records import EditRequest


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt in a context.

    Attributes:
        prompt: What the model is asked.
        span: First character of the subject and one past its last, in the text or in the message that holds it.
        message: Which message of a conversation that is.
    """

    prompt: Prompt
    span: tuple[int, int]
    message: int = 0


@checked
def asks_in_chat(request: EditRequest, context: AnyContext = SLOT) -> bool:
    """Whether a request is asked in chat in a context."""
    if isinstance(context, str):
        return request.chat is not None
    return context.form == "chat" or request.chat is None


@checked
def placed(request: EditRequest, context: AnyContext = SLOT) -> PlacedPrompt:
    """A request in a context: as it is asked, in chat, or in the form that it does not have.

    Args:
        request: The request; its subject is the text in its slot, wherever else the same words occur.
        context: A template with one ``{}`` for the whole prompt, around a text or around the message that holds the
            subject; or a `Context`.
    """
    given = context if isinstance(context, Context) else None
    around = context if isinstance(context, str) else context.text
    lead, _, tail = around.partition(SLOT)
    subject = request.subject.strip()
    start = len(lead) + request.prompt.index(SLOT) + request.subject.index(subject)
    span = start, start + len(subject)
    if not asks_in_chat(request, context):
        return PlacedPrompt(lead + continuation(request.text, request.target, request.join)[0], span)
    own = () if request.chat is None else request.chat.before
    turns = () if given is None else given.before
    if own and own[0].role == "system":
        front = (own[0], *(turn for turn in turns if turn.role != "system"), *own[1:])
    else:
        front = (*turns, *own)
    role = "user" if request.chat is None else request.chat.role
    after = () if request.chat is None else request.chat.after
    messages = (*front, Message(role, f"{lead}{request.text}{tail}"), *after)
    return PlacedPrompt(Conversation(messages), span, len(front))
