"""Canary prompts: plain text that no edit is about, on which an edited model should go on as before.

The packaged ones cover geography, science, arithmetic, grammar, code and chat. A user's own file, in the same form,
says what the served model is for; JSONL, one object a line with ``prompt`` and, if wished, ``id`` and ``topic``.
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

from emendo.errors import GateConfigError
from emendo.storage import read_plain_text
from emendo.suggest import unknown_name

PACKAGED = "packaged"
"""The name of the prompts that come with Emendo, where a configuration lists files."""

_FIELDS = ("prompt", "id", "topic")
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
class CanarySet:
    """The canaries of a gate and where they come from.

    Attributes:
        canaries: All prompts, each once.
        sources: SHA-256 of every file by its name, so that a report says what it was measured on.
    """

    canaries: tuple[Canary, ...]
    sources: dict[str, str]

    @property
    def prompts(self) -> list[str]:
        """Their texts, in order."""
        return [canary.prompt for canary in self.canaries]


def read_canaries(files: Sequence[str], folder: Path | None = None) -> CanarySet:
    """Canary prompts from files; a prompt that several files have is taken once.

    Args:
        files: Paths, or `PACKAGED`.
        folder: What relative paths are relative to; None: the working directory.

    Raises:
        GateConfigError: A file is missing, not UTF-8, empty, or holds bad lines; every bad line is named.
    """
    found: dict[str, Canary] = {}
    sources: dict[str, str] = {}
    for file in files:
        text = _text(file, folder)
        sources[file] = hashlib.sha256(text.encode()).hexdigest()
        for canary in parse_canaries(text, file):
            found.setdefault(canary.prompt, canary)
    return CanarySet(tuple(found.values()), sources)


def parse_canaries(text: str, source: str) -> list[Canary]:
    """Canary prompts from JSONL text; blank lines are skipped.

    Args:
        text: One JSON object a line.
        source: How errors name the text.

    Raises:
        GateConfigError: With every bad line, its number and the reason, or where there is no prompt.
    """
    canaries: list[Canary] = []
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
            canaries.append(Canary(row["prompt"], row.get("id") or f"{source}:{number}", row.get("topic", "")))
    if problems:
        raise GateConfigError(f"{source}: {len(problems)} problem(s) in this file of canary prompts:", problems)
    if not canaries:
        raise GateConfigError(f"{source}: holds no canary prompt; {_EXPECTED}")
    return canaries


def _text(file: str, folder: Path | None) -> str:
    if file == PACKAGED:
        return (resources.files("emendo") / "data" / "canaries.jsonl").read_text(encoding="utf-8")
    path = (folder or Path()) / Path(file).expanduser()
    try:
        return read_plain_text(path)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise GateConfigError(f"cannot read canary prompts from {str(path)!r}: {error}; {_EXPECTED}") from error


def _problems(row: Any) -> list[str]:
    """Every reason why a parsed line is no canary."""
    if not isinstance(row, dict):
        return [f"expected a JSON object, found {type(row).__name__}"]
    found = [unknown_name("field", str(name), _FIELDS, "canary file") for name in row if name not in _FIELDS]
    if "prompt" not in row:
        found.append("prompt is missing")
    for name in _FIELDS:
        value = row.get(name, "-")
        if not isinstance(value, str):
            found.append(f"{name} must be a string, found {type(value).__name__}")
        elif name == "prompt" and not value.strip():
            found.append("prompt is empty")
        elif not _is_text(value):
            found.append(f"{name} holds half of a surrogate pair, which no tokenizer can read")
    return found


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
