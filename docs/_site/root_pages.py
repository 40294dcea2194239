"""Pages that stand at the root of the repository, with their links turned to the site's."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGES = {"CONTRIBUTING.md": "project/contributing.md", "CHANGELOG.md": "project/changelog.md"}


def root_pages() -> dict[str, str]:
    """Markdown by path."""
    return {path: _turned((_ROOT / name).read_text(encoding="utf-8")) for name, path in _PAGES.items()}


def _turned(text: str) -> str:
    for name, path in _PAGES.items():
        text = text.replace(f"]({name})", f"]({Path(path).name})")
    return re.sub(r"\]\(docs/([^)]*)\)", r"](../\1)", text)
