"""Pages of the Python library: what `emendo` and its packages export, described by their docstrings."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[2] / "src" / "emendo"
FOLDER = "reference/api"

_LEFT_OUT = ("cli", "io", "data")
"""Packages that are not for users of the library."""

_INHERITED = "    options:\n      inherited_members: true\n"
_OPTIONS = {"EditableModel": _INHERITED, "EditSession": _INHERITED, "Desk": _INHERITED}
"""Of names whose members come from several classes."""


@cache
def api_pages() -> dict[str, str]:
    """Markdown by path: the top of the library, then each package that exports names."""
    pages = {f"{FOLDER}/index.md": _top()}
    for init in sorted(_PACKAGE.glob("*/__init__.py")):
        name, names = init.parent.name, _exported(init)
        if names and name not in _LEFT_OUT:
            pages[f"{FOLDER}/{name}.md"] = _members(f"emendo.{name}", names)
    return pages


def _top() -> str:
    names = [name for name in _exported(_PACKAGE / "__init__.py") if not name.startswith("_")]
    return "# emendo\n\nEverything on this page is imported as `emendo.NAME`.\n\n" + _blocks("emendo", names)


def _members(module: str, names: list[str]) -> str:
    docstring = ast.get_docstring(ast.parse((_PACKAGE / module.partition(".")[2] / "__init__.py").read_text())) or ""
    return f"# {module}\n\n{docstring.partition(chr(10) * 2)[0]}\n\n" + _blocks(module, names)


def _blocks(module: str, names: list[str]) -> str:
    return "\n".join(f"::: {module}.{name}\n{_OPTIONS.get(name, '')}" for name in sorted(names, key=str.lower))


def _exported(init: Path) -> list[str]:
    """The names in `__all__`."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []
