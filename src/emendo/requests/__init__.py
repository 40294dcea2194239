"""What to edit: requests, records (a request with probes), their form as plain values, and validation."""

from emendo.requests.chat import (
    AnyContext,
    Chat,
    Context,
    Conversation,
    Message,
    Prompt,
    context_record,
    is_message,
    is_question,
    prompt_text,
)
from emendo.requests.given import requests_of
from emendo.requests.hints import NAMES_ELSEWHERE, SLOT
from emendo.requests.joining import JOINS, Join, Pair, attaches, continuation, keeps_joint, spelled_as_stored
from emendo.requests.placing import PlacedPrompt, asks_in_chat, placed
from emendo.requests.problems import PROBE_KINDS
from emendo.requests.reading import record_from_dict
from emendo.requests.records import (
    ASKED_FIELDS,
    FIELDS,
    PROMPT_LISTS,
    EditRecord,
    EditRequest,
    Probe,
    check_requests,
    in_chat,
    same_text,
)

__all__ = [
    "ASKED_FIELDS",
    "FIELDS",
    "JOINS",
    "NAMES_ELSEWHERE",
    "PROBE_KINDS",
    "PROMPT_LISTS",
    "SLOT",
    "AnyContext",
    "Chat",
    "Context",
    "Conversation",
    "EditRecord",
    "EditRequest",
    "Join",
    "Message",
    "Pair",
    "PlacedPrompt",
    "Probe",
    "Prompt",
    "asks_in_chat",
    "attaches",
    "check_requests",
    "context_record",
    "continuation",
    "in_chat",
    "is_message",
    "is_question",
    "keeps_joint",
    "placed",
    "prompt_text",
    "record_from_dict",
    "requests_of",
    "same_text",
    "spelled_as_stored",
]
