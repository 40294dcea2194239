"""What holds a value to an annotation, and finds what is wrong where it does not fit."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from emendo.arguments.ranges import MOST, Anything, Between
from emendo.arguments.suggest import nearest
from emendo.arguments.words import is_path, words

_DEVICE = "a device of torch, such as 'cpu' or 'cuda:0'"
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a value: where in it, what is there, what should be."""

    where: str
    found: object
    expected: str
    why: str = ""


Test: TypeAlias = Callable[[Any], Fault | None]


def holder_of(hint: Any, sizes: bool = True) -> Test:
    """What holds a value to an annotation.

    Args:
        hint: The annotation.
        sizes: Whether tensors that are handed over as they are have to be of the annotated dimensions and dtype.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return lambda value: None
    if origin is Annotated:
        ranges = [extra for extra in inner[1:] if isinstance(extra, Between)]
        if any(isinstance(extra, Anything) for extra in inner[1:]):
            return _measured if inner[0] is float else lambda value: None
        return _number(inner[0], ranges[0]) if ranges else holder_of(inner[0])
    if hint in (int, float):
        return _number(hint, None)
    if hint is str:
        return _text
    if origin is Literal:
        return _one_of(inner)
    if origin in (Union, UnionType):
        return _any_of(inner, sizes)
    if origin is tuple:
        return _sequence(inner[0], exact=tuple) if inner[-1] is Ellipsis else _tuple(inner, sizes)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(inner[0], exact=origin if origin in (list,) else None)
    if origin is not None and issubclass(origin, Iterable):
        return _iterable(inner[0])
    return _instance(hint, sizes)


def _number(kind: Any, within: Between | None) -> Test:
    allowed: Any = Real if kind is float else Integral
    expected = words(kind) + (f" {within}" if within else "")

    def test_number(value: Any) -> Fault | None:
        if type(value) is kind and -MOST <= value <= MOST and (within is None or within.holds(value)):
            return None  # of nearly all numbers; what follows is for the others
        if isinstance(value, bool) or not isinstance(value, allowed):
            return Fault("", value, expected)
        if not (-MOST <= int(value) <= MOST if isinstance(value, Integral) else math.isfinite(value)):
            too_large = isinstance(value, Integral) and within is None
            return Fault("", value, f"{expected} below 2**63" if too_large else expected)
        return None if within is None or within.holds(value) else Fault("", value, expected)

    return test_number


def _measured(value: Any) -> Fault | None:
    too_large = isinstance(value, Integral) and not -MOST <= int(value) <= MOST
    return Fault("", value, "a number") if too_large or isinstance(value, bool) or not isinstance(value, Real) else None


def _text(value: Any) -> Fault | None:
    if not isinstance(value, str):
        return Fault("", value, "text")
    if not value.isascii() and (half := _HALF.search(value)):
        return Fault("", value, "text that UTF-8 can write", f"character {half.start()} is half of a surrogate pair")
    return None


def _path(value: Any) -> Fault | None:
    if not isinstance(value, str | os.PathLike):
        return Fault("", value, "a path")
    try:
        return Fault("", str(value), "a path", "no path has a NUL character") if b"\0" in os.fsencode(value) else None
    except UnicodeEncodeError:
        return Fault("", str(value), "a path", "the file system cannot write half of a surrogate pair")


def _device(kind: Any) -> Test:
    def test_device(value: Any) -> Fault | None:
        try:
            if isinstance(value, kind) or (isinstance(value, str) and kind(value)):
                return None
        except RuntimeError:
            pass
        return Fault("", value, _DEVICE)

    return test_device


def _one_of(values: tuple[Any, ...]) -> Test:
    expected = " or ".join(map(repr, values))

    def test_value(value: Any) -> Fault | None:
        if isinstance(value, str | int) and value in values:
            return None
        near = nearest(value, [name for name in values if isinstance(name, str)]) if isinstance(value, str) else []
        return Fault("", value, expected + (f"; did you mean {near[0]!r}?" if near else ""))

    return test_value


def _any_of(kinds: tuple[Any, ...], sizes: bool = True) -> Test:
    if str in kinds and any(map(is_path, kinds)):
        kinds = tuple(kind for kind in kinds if kind is not str)
        tests = [_path if is_path(kind) else holder_of(kind) for kind in kinds]
    elif device := next((kind for kind in kinds if getattr(kind, "__name__", "") == "device"), None):  # torch's
        tests = [_device(device)]
    else:
        tests = [holder_of(kind, sizes) for kind in kinds]
    expected = words(Union[kinds])  # noqa: UP007

    def test_kinds(value: Any) -> Fault | None:
        best = None
        for one in tests:
            if (fault := one(value)) is None:
                return None
            if fault.where or fault.why:  # the right kind of thing, with something wrong in it
                best = fault
        return best or Fault("", value, expected)

    return test_kinds


def _tuple(kinds: tuple[Any, ...], sizes: bool) -> Test:
    tests = [holder_of(kind, sizes) for kind in kinds]
    expected = f"a tuple of {len(kinds)}: {', '.join(map(words, kinds))}"

    def test_tuple(value: Any) -> Fault | None:
        if not isinstance(value, tuple | list) or len(value) != len(tests):
            return Fault("", value, expected)
        return _inside(zip(range(len(tests)), value, strict=True), dict(enumerate(tests)).__getitem__)

    return test_tuple


def _sequence(kind: Any, exact: type | None) -> Test:
    one, expected = holder_of(kind), f"a sequence, each {words(kind)}"

    def test_sequence(value: Any) -> Fault | None:
        if exact is list and not isinstance(value, list):
            return Fault("", value, f"a list, each {words(kind)}")
        if type(value) not in (list, tuple) and (
            not isinstance(value, Sequence) or isinstance(value, str | bytes | Mapping)
        ):
            array = hasattr(value, "tolist")  # of NumPy or torch, whose truth value is no question of length
            lazy = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
            more = ", such as its tolist()" if array else ", such as list(...) of it" if lazy else ""
            return Fault("", value, expected + more)
        return _each(value, one)

    return test_sequence


def _iterable(kind: Any) -> Test:
    one, expected = holder_of(kind), f"a sequence, each {words(kind)}"

    def test_iterable(value: Any) -> Fault | None:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping) or hasattr(value, "tolist"):
            return Fault("", value, expected)
        return _each(value, one) if isinstance(value, Sequence) else None

    return test_iterable


def _mapping(key: Any, kind: Any) -> Test:
    of_key, of_value, expected = holder_of(key), holder_of(kind), f"a mapping of {words(key)} to {words(kind)}"

    def test_mapping(value: Any) -> Fault | None:
        if not isinstance(value, Mapping):
            return Fault("", value, expected)
        for name in value:
            if (fault := of_key(name)) is not None:
                return Fault("", name, f"{fault.expected} for every key", fault.why)
        return _inside(value.items(), lambda name: of_value)

    return test_mapping


def _each(values: Sequence[Any], one: Test) -> Fault | None:
    for value in values:
        if one(value) is not None:
            return _inside(enumerate(values), lambda place: one)
    return None


def _inside(values: Iterable[tuple[Any, Any]], test_at: Callable[[Any], Test]) -> Fault | None:
    for place, value in values:
        if (fault := test_at(place)(value)) is not None:
            return Fault(f"[{place!r}]{fault.where}", fault.found, fault.expected, fault.why)
    return None


def _instance(hint: Any, sizes: bool) -> Test:
    if is_path(hint):
        return lambda value: _path(value) if isinstance(value, os.PathLike) else Fault("", value, "a pathlib.Path")
    kind = get_origin(hint) or hint
    if not sizes and hasattr(kind, "dim_str"):
        kind = kind.array_type
    expected = words(hint)

    def test_instance(value: Any) -> Fault | None:
        return None if isinstance(value, kind) else Fault("", value, expected)

    return test_instance
