"""Canaries: text that no edit is about, on which an edited model should go on as before.

A *prompt* is judged by the token after it, a *text* or a *conversation* by every token of it, together with the others
of its topic. The packaged prompts cover geography, science, arithmetic, grammar, code and chat in English; the packaged
texts languages, formats and forms of question. A user's own file, in the same form, says what the served model is for:
JSONL, one object a line with one of ``prompt``, ``text`` and ``messages`` and, if wished, ``id`` and ``topic``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.arguments.suggest import unknown_name
from emendo.errors import GateConfigError
from emendo.io.plain_file import read_plain_text
from emendo.models import EditableModel

PACKAGED = "packaged"
"""The name of the prompts that come with Emendo, where a configuration lists files."""

OTHER = "other"
"""The topic of texts that name none."""

_CONTENT = ("prompt", "text", "messages")
_FIELDS = (*_CONTENT, "id", "topic")
_ROLES = ("system", "user", "assistant")
_EXPECTED = 'expected JSONL in UTF-8, one object a line such as {"prompt": "The largest ocean on Earth is the"}'


@dataclass(frozen=True)
class Canary:
    """One canary prompt.

    Attributes:
        prompt: The raw text; what is compared is the distribution of the token after it.
        id: Label in reports; the file and line where empty in the file.
        topic: What it stands for, such as ``"code"``.
    """

    prompt: str
    id: str
    topic: str = ""


@dataclass(frozen=True)
class CanaryText:
    """A text, or a conversation, of which every token is compared.

    Attributes:
        id: Label in reports; the file and line where empty in the file.
        topic: The kind of text that it stands for, such as ``"French"``; kinds are judged one by one.
        text: The raw text; empty where it is a conversation.
        messages: (role, content) of a conversation, which is read in the model's own chat template.
    """

    id: str
    topic: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    def encode(self, lm: EditableModel) -> list[int]:
        """Its tokens; a conversation is plain text, a line a turn, for a model without a chat template."""
        return lm.encode_conversation(self.messages) if self.messages else lm.encode(self.text)


@dataclass(frozen=True)
class CanarySet:
    """The canaries of a gate and where they come from.

    Attributes:
        canaries: All prompts, each once.
        sources: SHA-256 of every file by its name, so that a report says what it was measured on.
        texts: All texts and conversations, each once.
    """

    canaries: tuple[Canary, ...]
    sources: dict[str, str]
    texts: tuple[CanaryText, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """The texts of all prompts, in order."""
        return [canary.prompt for canary in self.canaries]


@checked
def read_canaries(files: Sequence[str], folder: Path | None = None) -> CanarySet:
    """Canaries from files; what several files have is taken once.

    Args:
        files: Paths, or `PACKAGED`.
        folder: What relative paths are relative to; None: the working directory.

    Raises:
        GateConfigError: A file is missing, not UTF-8, empty, or holds bad lines; every bad line is named.
    """
    prompts: dict[str, Canary] = {}
    texts: dict[tuple[str, tuple[tuple[str, str], ...]], CanaryText] = {}
    sources: dict[str, str] = {}
    for file in files:
        content = _text(file, folder)
        sources[file] = hashlib.sha256(content.encode()).hexdigest()
        for canary in parse_canaries(content, file):
            if isinstance(canary, Canary):
                prompts.setdefault(canary.prompt, canary)
            else:
                texts.setdefault((canary.text, canary.messages), canary)
    return CanarySet(tuple(prompts.values()), sources, tuple(texts.values()))


def parse_canaries(text: str, source: str) -> list[Canary | CanaryText]:
    """Canaries from JSONL text; blank lines are skipped.

    Args:
        text: One JSON object a line.
        source: How errors name the text.

    Raises:
        GateConfigError: With every bad line, its number and the reason, or where there is no canary.
    """
    canaries: list[Canary | CanaryText] = []
    problems: list[str] = []
    # Not splitlines(): that also splits at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: not JSON: {error}")
            continue
        found = _problems(row)
        problems += [f"line {number}: {problem}" for problem in found]
        if not found:
            canaries.append(_canary(row, f"{source}:{number}"))
    if problems:
        raise GateConfigError(f"{source}: {len(problems)} problem(s) in this file of canaries:", problems)
    if not canaries:
        raise GateConfigError(f"{source}: holds no canary; {_EXPECTED}")
    return canaries


def _canary(row: dict[str, Any], place: str) -> Canary | CanaryText:
    label, topic = row.get("id") or place, row.get("topic", "")
    if "prompt" in row:
        return Canary(row["prompt"], label, topic)
    messages = tuple((message["role"], message["content"]) for message in row.get("messages", ()))
    return CanaryText(label, topic or OTHER, row.get("text", ""), messages)


def _text(file: str, folder: Path | None) -> str:
    if file == PACKAGED:
        return (resources.files("emendo") / "data" / "canaries.jsonl").read_text(encoding="utf-8")
    path = (folder or Path()) / Path(file).expanduser()
    try:
        return read_plain_text(path)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise GateConfigError(f"cannot read canaries from {str(path)!r}: {error}; {_EXPECTED}") from error


def _problems(row: Any) -> list[str]:
    """Every reason why a parsed line is no canary."""
    if not isinstance(row, dict):
        return [f"expected a JSON object, found {type(row).__name__}"]
    found = [unknown_name("field", str(name), _FIELDS, "canary file") for name in row if name not in _FIELDS]
    given = [name for name in _CONTENT if name in row]
    if not given:
        found.append("prompt is missing (or text, or messages)")
    elif len(given) > 1:
        found.append(f"expected one of {', '.join(_CONTENT)}, found {' and '.join(given)}; give each its own line")
    for name in ("prompt", "text", "id", "topic"):
        if name in row:
            found += _text_problems(name, row[name], empty=name in ("id", "topic"))
    return found + (_message_problems(row["messages"]) if "messages" in row else [])


def _message_problems(messages: Any) -> list[str]:
    if not isinstance(messages, list) or not messages:
        return ['messages must be a list such as [{"role": "user", "content": "Hello!"}, ...]']
    found = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            found.append(f"message {number} must have role and content and nothing else")
            continue
        if message["role"] not in _ROLES:
            found.append(f"message {number}: role must be one of {', '.join(_ROLES)}, found {message['role']!r}")
        found += _text_problems(f"message {number}: content", message["content"])
    return found


def _text_problems(name: str, value: Any, *, empty: bool = False) -> list[str]:
    """Why a value is no text; `empty` allows one without visible characters."""
    if not isinstance(value, str):
        return [f"{name} must be a string, found {type(value).__name__}"]
    if not empty and not value.strip():
        return [f"{name} is empty"]
    return [] if _is_text(value) else [f"{name} holds half of a surrogate pair, which no tokenizer can read"]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
