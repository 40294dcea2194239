"""Every error that a docstring promises is there, and something that the function calls raises it.

The second is read off the names in the source, so it finds promises that nothing can keep and not all of those that are
kept no longer; `tests/tiny/test_promised_errors.py` makes public functions raise what they promise.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import emendo.errors

SOURCE = Path(__file__).parents[2] / "src" / "emendo"
OWN = {name: kind for name, kind in vars(emendo.errors).items() if isinstance(kind, type)}
_DEPTH = 6
"""Calls from one function to the next that are followed."""

_MOST = 12
"""A name that more functions have says nothing of which is called."""

_SECTION = re.compile(r"^( *)Raises:\n((?:\1 +\S.*\n?)+)", re.MULTILINE)
_ENTRY = r"^{indent}((?:[A-Za-z_][\w.]*(?:, )?)+)(?:, \.\.\.)?:"

ELSEWHERE = {
    ("_from_file", "AttributeError"): "Python's own, of contents of another type",
}
"""What is raised by no statement of Emendo's that such a search finds."""


@dataclass
class Definition:
    place: str
    name: str
    promised: list[str]
    raised: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    empty: bool = False


def promised(document: str | None) -> list[str]:
    found = _SECTION.search((document or "") + "\n")
    if found is None:
        return []
    first = re.match(r" *", found[2])
    assert first
    entries = re.findall(_ENTRY.format(indent=first[0]), found[2], re.MULTILINE)
    return [name for entry in entries for name in entry.split(", ")]


def definitions() -> tuple[list[Definition], dict[str, list[Definition]]]:
    every: list[Definition] = []
    by_name: dict[str, list[Definition]] = defaultdict(list)

    def visit(node: ast.AST, owner: str | None, path: Path) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            place = f"{path.relative_to(SOURCE)}:{child.lineno}"
            made = Definition(place, child.name, promised(ast.get_docstring(child)))
            if isinstance(child, ast.ClassDef):
                kinds = [child.name, *(ast.unparse(base) for base in child.bases)]
                made.named = {f"{name}@{kind}" for name in ("__init__", "__post_init__", "__new__") for kind in kinds}
            else:
                parts = list(ast.walk(child))
                made.named = {part.id for part in parts if isinstance(part, ast.Name)}
                made.named |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
                raises = [part.exc for part in parts if isinstance(part, ast.Raise) and part.exc is not None]
                kinds = [exc.func if isinstance(exc, ast.Call) else exc for exc in raises]
                made.raised = {ast.unparse(kind).rpartition(".")[2] for kind in kinds} | (made.named & set(OWN))
                made.empty = not any(isinstance(part, (ast.Call, ast.Raise)) for part in parts)
                if owner:
                    by_name[f"{child.name}@{owner}"].append(made)
            every.append(made)
            by_name[child.name].append(made)
            visit(child, child.name if isinstance(child, ast.ClassDef) else owner, path)

    for path in sorted(SOURCE.rglob("*.py")):
        visit(ast.parse(path.read_text(encoding="utf-8")), None, path)
    return every, by_name


EVERY, BY_NAME = definitions()


def keeps(begin: Definition, kinds: set[str]) -> bool:
    """Whether a function raises one of these, or something that it may call."""
    seen, front = {id(begin)}, [begin]
    for _ in range(_DEPTH):
        if any(one.raised & kinds for one in front):
            return True
        after = {id(one): one for here in front for one in _called(here) if id(one) not in seen}
        seen |= set(after)
        front = list(after.values())
    return any(one.raised & kinds for one in front)


_CALLED: dict[int, list[Definition]] = {}


def _called(here: Definition) -> list[Definition]:
    if id(here) not in _CALLED:
        known = [BY_NAME[name] for name in here.named if name in BY_NAME]
        _CALLED[id(here)] = [one for found in known if len(found) < _MOST for one in found]
    return _CALLED[id(here)]


def test_the_errors_that_docstrings_name_are_there() -> None:
    assert sum(len(one.promised) for one in EVERY) > 500  # that it reads them
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    strange = []
    for one in EVERY:
        for name in one.promised:
            short = name.rpartition(".")[2]
            known = short in OWN or hasattr(builtins, short) or f"class {short}(" in source
            if not (known or re.search(rf"import [^\n]*\b{short}\b", source) or short == "PanicException"):
                strange.append((one.place, one.name, name))
    assert strange == []


def test_something_that_is_called_raises_them() -> None:
    """Of a base class or protocol, whose method does nothing, those that do it are meant."""
    broken = []
    for one in EVERY:
        names = [name for name in one.promised if not one.empty and (one.name, name) not in ELSEWHERE]
        for name in names:
            kind = OWN.get(name) or getattr(builtins, name, None)
            kinds = {other for other, c in OWN.items() if kind is not None and issubclass(c, kind)} | {name}
            if name != "PanicException" and not keeps(one, kinds):
                broken.append((one.place, one.name, name))
    assert broken == []
