"""Every command, option, setting, argument, extra and variable that a message names is there."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from emendo.cli.app import app
from emendo.methods import CATALOGUE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "emendo"

OF_OTHERS = {
    "pip": ("--no-deps", "--force-reinstall"),
    "hf download": ("--revision", "--local-dir"),
    "llama.cpp": ("--lora-scaled", "--cache-ram", "--merge"),
    "vllm and sglang": ("--enable-lora", "--max-lora-rank", "--lora-target-modules", "--model-path"),
    "ray start": ("--head",),
    "an option's beginning, which a message completes": ("--",),
}
"""Options of other programs that messages name."""

PLACE = "\0"
"""Stands for what a message fills in."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module that is no docstring; what is put into it is a `PLACE`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in ast.walk(node))
            parts = [part.value if isinstance(part, ast.Constant) else PLACE for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


MESSAGES = [
    (f"{path.relative_to(SOURCE)}:{line}", text)
    for path in sorted(SOURCE.rglob("*.py"))
    for line, text in texts(path)
    if " " in text
]


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}

    def walk(words: str, command: Any) -> None:
        found[words] = command
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{words} {name}".strip(), inner)

    walk("", typer.main.get_command(app))
    return found


COMMANDS = commands()
OPTIONS = {words: {option for part in command.params for option in part.opts} for words, command in COMMANDS.items()}
EVERY_OPTION = set().union(*OPTIONS.values()) | {
    "--help",
    *(option for known in OF_OTHERS.values() for option in known),
}


def told(pattern: str) -> list[tuple[str, re.Match[str]]]:
    return [(place, found) for place, text in MESSAGES for found in re.finditer(pattern, text)]


def test_commands_and_their_options() -> None:
    wrong = []
    for place, found in told(
        r"emendo ((?:[a-z][a-z|-]*)(?: [a-z][a-z|-]*)?)((?: +(?:--?[a-z-]+|[A-Z\0][\w\0./|-]*))*)"
    ):
        words = found[1].split(" ")
        for first in words[0].split("|"):
            if first not in COMMANDS:
                continue  # "emendo reads", in a sentence; commands in code marks are looked at below
            group = getattr(COMMANDS[first], "commands", None)
            names = [f"{first} {verb}" for verb in words[1].split("|")] if group and len(words) > 1 else [first]
            for name in names:
                if name not in COMMANDS:
                    wrong.append((place, name))
                elif strange := set(re.findall(r"--[a-z][a-z-]+", found[2])) - OPTIONS[name]:
                    wrong.append((place, name, strange))
    wrong += [
        (place, found[1]) for place, found in told(r"`emendo ([a-z-]+)") if found[1] not in COMMANDS and found[1] != "x"
    ]
    assert wrong == []


PATHS = ("--model", "--ledger", "--update", "--corpus", "--data", "--requests", "ledger init", "emendo report", "less")
"""What a path or the name of a model follows in a command."""


def test_paths_in_commands_are_words_of_a_shell() -> None:
    """A folder's name may have a space in it."""
    loose = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for before, part in itertools.pairwise(parts):
                text = str(before.value) if isinstance(before, ast.Constant) else ""
                if text.endswith(tuple(f"{one} " for one in PATHS)) and _is_bare(part):
                    loose.append((str(path.relative_to(SOURCE)), node.lineno, ast.unparse(part)))
    assert loose == []


def _is_bare(part: ast.expr) -> bool:
    """Whether a place takes what it is given as it stands; constants are names of Emendo's own."""
    if not isinstance(part, ast.FormattedValue) or part.conversion != -1:
        return False
    return "quote" not in ast.unparse(part) and not ast.unparse(part.value).isupper()


def test_options() -> None:
    assert [
        (place, found[0]) for place, found in told(r"(?<![\w-])--[a-z][a-z-]+") if found[0] not in EVERY_OPTION
    ] == []


def test_settings() -> None:
    known = {name for config in CATALOGUE.values() for name in config.settings()}
    wrong = [(place, found[1]) for place, found in told(r"--set '?([a-z_]+(?:\.[a-z_]+)*)=") if found[1] not in known]
    assert wrong == []


def test_arguments() -> None:
    known = {
        argument.arg
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
    }
    fields = {
        node.target.id
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert [(place, found[1]) for place, found in told(r"[( ]([a-z_]+)=\)") if found[1] not in known | fields] == []


def test_extras_and_variables() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [(place, found[1]) for place, found in told(r"emendo\[([^\]\0]+)\]") if found[1] not in extras] == []
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    for place, found in told(r"\bEMENDO_[A-Z_]+"):
        assert source.count(f'"{found[0]}"'), (place, found[0])


@pytest.mark.parametrize("words", ["pip install -U emendo", "pip install emendo"])
def test_nothing_sends_people_to_an_index_that_does_not_have_emendo(words: str) -> None:
    assert [place for place, text in MESSAGES if words in text] == []
