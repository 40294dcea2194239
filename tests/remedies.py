"""What a message of a command advises, done as a person would: options take the place of those given, or join them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

MEANT = {"VALUE": "0.1", "FILE": "done/update.safetensors", "MODEL": "model"}
"""Words of messages that stand for something, and what a person puts there."""


def in_words(advice: str, meant: Mapping[str, str] = MEANT) -> str:
    """What a person puts in the place of the words that stand for something."""
    for word, value in meant.items():
        advice = advice.replace(word, value)
    return advice


def done(words: list[str], found: re.Match[str], message: str, meant: Mapping[str, str] = MEANT) -> list[str]:
    """The command with what its message advises."""
    if "leave" in found[0] and not found.groups():
        option = re.search(r"--[a-z-]+", found[0]) or re.search(r"--[a-z-]+", message)
        assert option, message
        at = words.index(option[0])
        return words[:at] + words[at + 2 :]
    groups = [in_words(group, meant) for group in found.groups() if group and group.startswith("--")]
    advised = [part for group in groups for part in shlex.split(group)]
    if "value" in found.re.groupindex:
        advised.append(found["value"])
    while advised:
        option = advised.pop(0)
        value = [] if not advised or advised[0].startswith("--") else [advised.pop(0)]
        if option == "--set":
            name = value[0].partition("=")[0]
            given = [n for n, word in enumerate(words) if word.partition("=")[0] == name and words[n - 1] == "--set"]
        else:
            given = [n + 1 for n, word in enumerate(words) if word == option]
        at = given[0] if given and value else None
        words = [*words, option, *value] if at is None else [*words[:at], *value, *words[at + 1 :]]
    return words
