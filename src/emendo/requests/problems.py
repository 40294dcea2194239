"""What is wrong with the fields of requests and probes: every reason at once, in words."""

from __future__ import annotations

from emendo.arguments.words import shown
from emendo.requests.hints import SLOT, with_slot
from emendo.requests.joining import JOINS

PROBE_KINDS = {
    "portability": "what follows from the new fact, asked in one step: aliases, inverse and derived relations",
    "multi_hop": "a question whose answer needs several facts, the new ones among them",
    "single_hop": "one step of such a question, as it is after the edit",
    "locality": "what the edit must not touch",
    "question": "the new fact itself, asked as a question; the answer is the new target",
}
"""What a probe may ask, and what each kind means."""


def request_problems(
    prompt: object, subject: object, target: object, id: object = "", join: object = "auto"
) -> list[str]:
    """Every reason why these fields do not make a request."""
    found: list[str] = []
    for name, value in (("prompt", prompt), ("subject", subject), ("target", target)):
        if not isinstance(value, str):
            found.append(f"{name} must be a string, found {type(value).__name__}: {shown(value)}")
        elif not value.strip():
            found.append(f"{name} is empty")
        elif not is_text(value):
            found.append(f"{name} holds half of a surrogate pair, which no tokenizer can read: {shown(value)}")
    if not isinstance(id, str):
        found.append(f"id must be a string, found {type(id).__name__}: {shown(id)}")
    elif not is_text(id):
        found.append(f"id holds half of a surrogate pair: {shown(id)}")
    if not isinstance(join, str) or join not in JOINS:
        found.append(f"join must be one of {', '.join(JOINS)}, found {shown(join)}")
    if isinstance(prompt, str) and prompt.strip() and prompt.count(SLOT) != 1:
        slots = prompt.count(SLOT)
        better = with_slot(prompt, subject) if slots == 0 else ""
        found.append(f"prompt must hold exactly one {{}} for the subject, found {slots}: {shown(prompt)}{better}")
    if isinstance(subject, str) and SLOT in subject:
        found.append(f"subject must not hold {{}}: {shown(subject)}")
    return found


def probe_problems(kind: object, prompt: object, answers: object, group: object, chat: object = False) -> list[str]:
    """Every reason why these fields do not make a probe."""
    found: list[str] = []
    if not isinstance(kind, str) or kind not in PROBE_KINDS:
        found.append(f"kind must be one of {', '.join(PROBE_KINDS)}, found {shown(kind)}")
    if not is_visible(prompt):
        found.append(f"prompt must be a non-empty string, found {shown(prompt)}")
    if not isinstance(answers, tuple) or not answers or not all(map(is_visible, answers)):
        found.append(f"answers must be one or more non-empty strings, found {shown(answers)}")
    if not isinstance(group, str) or not is_text(group):
        found.append(f"group must be a string, found {shown(group)}")
    if not isinstance(chat, bool):
        found.append(f"chat must be true or false, found {shown(chat)}")
    return found


def is_text(value: str) -> bool:
    """Whether a string can be encoded: JSON escapes can leave half of a surrogate pair in it."""
    if value.isascii():  # known to the string without looking through it; most are
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_visible(value: object) -> bool:
    """Whether a value is a string that shows something and can be encoded."""
    return isinstance(value, str) and value != "" and not value.isspace() and is_text(value)
