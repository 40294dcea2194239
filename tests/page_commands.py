"""The commands that pages tell people to run: `bash` blocks, and indented blocks that begin with a command.

A block is left out where the line before it is a comment of Markdown that says why::

    <!-- not run: needs a server -->

Installations, benchmarks and the page that has a test of its own are left out without one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"^```bash[^\n]*\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?P<body>(?: {4}[^\n]*\n(?:\n(?= {4}))?)+)")
_COMMAND = re.compile(r"^(?:emendo|python|pip|make|curl|\.venv/bin/\w+) ", re.MULTILINE)
_MARK = re.compile(r"<!-- not run: (?P<reason>[^\n]+) -->\n*\Z")


@dataclass(frozen=True)
class Block:
    """Commands of a page.

    Attributes:
        page: Path below the root.
        commands: As a shell takes them.
        reason: Why they are not run; None where they are.
    """

    page: str
    commands: str
    reason: str | None

    def emendo(self) -> Iterator[list[str]]:
        """The arguments of every `emendo` in it."""
        text = re.sub(r"<<'?(\w+)'?\n.*?\n\1\n", "\n", self.commands, flags=re.DOTALL).replace("\\\n", " ")
        for line in text.splitlines():
            for part in re.split(r"\s(?:\|\|?|&&|;|&)(?:\s|$)|<|>", line.split(" #")[0].strip()):
                words = part.strip()
                if words.startswith("emendo "):
                    yield shlex.split(words)[1:]


def pages() -> list[Path]:
    """The README and every page of the documentation that people read."""
    return [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "results" not in page.parts)]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fenced = [(found.start(), found["body"]) for found in _FENCE.finditer(text)]
    bare = re.sub(r"^```.*?^```$", lambda found: re.sub(r"[^\n]", "x", found[0]), text, flags=re.DOTALL | re.MULTILINE)
    indented = [
        (found.start(), re.sub(r"^ {4}", "", found["body"], flags=re.MULTILINE)) for found in _INDENTED.finditer(bare)
    ]
    found = fenced + [(start, body) for start, body in indented if _COMMAND.match(body)]
    name = str(page.relative_to(ROOT))
    return [Block(name, body, _reason(name, text[:start], body)) for start, body in sorted(found)]


def _reason(page: str, before: str, commands: str) -> str | None:
    if (found := _MARK.search(before)) is not None:
        return found["reason"]
    if page == "docs/guides/served-model.md":
        return "tests/model/test_walkthrough.py runs this page"
    return next((reason for pattern, reason in _LEFT_OUT.items() if re.match(pattern, commands)), None)


_LEFT_OUT = {
    r"python3 -m venv|make |\.venv/bin/": "an installation or a check of the checkout",
    r"python benchmarks/": "a benchmark: minutes to hours",
}
