"""What the docs and docstrings call by its full name is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"`(emendo(?:\.[a-z_]\w*)+(?:\.[A-Z]\w*)?)(?:\(\))?`|^\s*from (emendo[.\w]*) import ([\w, ]+)$", re.M)
FORMATS = re.compile(
    r"emendo\.(update|moment|ledger|report|experiment|perplexity|cell|trace|target"
    r"|measures|data_formats|distributions|model_families|gate_checks)$"
)
"""Names of file formats and of groups of entry points, which look like modules."""
TEXTS = [
    *(path for path in ROOT.glob("docs/**/*.md") if path.name != "renamed.md"),
    *ROOT.glob("*.md"),
    *ROOT.glob("src/**/*.py"),
]


def names(text: str) -> set[str]:
    found = set()
    for match in NAME.finditer(text):
        if match[1]:
            found.add(match[1])
        else:
            found |= {f"{match[2]}.{name.split(' as ')[0].strip()}" for name in match[3].split(",")}
    return {name for name in found if not FORMATS.match(name)}


def exists(name: str) -> bool:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


def test_every_name_is_there() -> None:
    lost = {str(path.relative_to(ROOT)): sorted(n for n in names(path.read_text()) if not exists(n)) for path in TEXTS}
    assert {path: found for path, found in lost.items() if found} == {}
