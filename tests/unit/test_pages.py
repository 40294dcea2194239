"""The pages of docs/ and of the root: their width, and the paths that code and tests name."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.every import every

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
_NAMED = re.compile(r"docs/[\w/-]+\.md")
_DOTTED = re.compile(r"`(emendo(?:\.\w+)+)[`(]")
_FILE = re.compile(r"`((?:\w+/)+\w+\.py)`")
_IMPORT = re.compile(r"^ *(from emendo[\w.]* import .+?)(?: +#.*)?$", re.MULTILINE)
_GROUP = re.compile(r'group="(emendo\.\w+)"')
WIDTH = 120
OTHERS = {"docs/gguf.md"}
"""Pages of other repositories."""


@every("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short_but_for_rows_of_tables(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("|")] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples", "experiments"])
def test_pages_that_code_names_are_there(folder: str) -> None:
    files = [file for kind in ("py", "toml", "yaml") for file in (ROOT / folder).rglob(f"*.{kind}")]
    named = {(found, file) for file in files for found in _NAMED.findall(file.read_text("utf-8"))}
    missing = [
        f"{file.relative_to(ROOT)}: {page}"
        for page, file in named
        if page not in OTHERS and not (ROOT / page).is_file()
    ]
    assert missing == []


@every("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_pages_import_is_there(page: Path) -> None:
    missing = []
    for line in _IMPORT.findall(page.read_text(encoding="utf-8")):
        (node,) = ast.parse(line).body
        assert isinstance(node, ast.ImportFrom)
        try:
            module = importlib.import_module(node.module or "")
            missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
        except ModuleNotFoundError as error:
            missing.append(str(error))
    assert missing == []


def _resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name, None)
        return found is not None
    return False


@every("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_and_files_of_pages_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    groups = {group for file in (ROOT / "src").rglob("*.py") for group in _GROUP.findall(file.read_text("utf-8"))}
    gone = [name for name in _DOTTED.findall(text) if name not in groups and not _resolves(name)]
    assert page.name == "renamed.md" or gone == []
    roots = (ROOT, ROOT / "src", ROOT / "src" / "emendo")
    missing = [path for path in _FILE.findall(text) if not any((root / path).is_file() for root in roots)]
    assert page.name == "CHANGELOG.md" or missing == []
