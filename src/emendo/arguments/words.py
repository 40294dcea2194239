"""Annotations and values in words."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from emendo.arguments.ranges import Between


def words(hint: Any) -> str:
    """An annotation in words, for "expected ..."."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [extra for extra in inner[1:] if isinstance(extra, Between)]
        return f"{words(inner[0])} {ranges[0]}" if ranges else words(inner[0])
    simple = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False", NoneType: "None"}
    if hint in (Any, object):
        return "anything"
    if hint in simple:
        return simple[hint]
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words(part) for part in sorted(inner, key=lambda part: part is NoneType)))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a tuple of {len(inner)}: {', '.join(map(words, inner))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of {words(inner[0])} to {words(inner[1])}"
    if origin in (list, tuple):
        return f"a {origin.__name__}, each {words(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a sequence, each {words(inner[0])}"
    if hasattr(hint, "dim_str"):  # of jaxtyping
        return f"{hint.array_type.__name__} of {_numbers(hint)} [{', '.join(hint.dim_str.split())}]"
    if is_path(hint):
        return "a path"
    if origin is not None and not isinstance(origin, type | None):
        return "a function"
    name = getattr(origin or hint, "__name__", str(hint))
    how = getattr(hint, "OBTAINED_BY", "")
    return "a function" if name == "Callable" else f"{_article(name)} {name}{f', from {how}' if how else ''}"


def _numbers(hint: Any) -> str:
    name = str(hint.__name__)
    return "whole numbers" if name.startswith("Int") else "truth values" if name.startswith("Bool") else "floats"


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOU" else "a"


def is_path(hint: Any) -> bool:
    """Whether it is the class of paths."""
    return isinstance(hint, type) and issubclass(hint, os.PathLike)


def shown(value: object) -> str:
    """A value as messages show it: shortened, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    return short.repr(value)
