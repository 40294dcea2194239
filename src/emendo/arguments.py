"""Arguments of public functions, held to their annotations before anything runs: what is wrong is said in words.

`checked` reads the annotations of a function and refuses what does not fit with an `InputError`, so that nobody meets
an `AttributeError` from inside. Annotations say ranges as well: ``Annotated[int, Between(1, 10)]``, or one of the names
below. Everywhere, numbers are finite, whole numbers fit into 64 bits, a sequence of texts is not one text, texts can be
written as UTF-8 and paths have no NUL.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from emendo.errors import InputError
from emendo.io.printable import shown
from emendo.suggest import nearest

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Between:
    """Range of a number, its ends included.

    Attributes:
        least: Smallest value.
        most: Largest value.
        open: Whether the ends themselves are left out.
    """

    least: float
    most: float
    open: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number is in it."""
        return bool(self.least < value < self.most if self.open else self.least <= value <= self.most)

    def __str__(self) -> str:
        ends = "" if not self.open else ", both left out"
        if self.most in (math.inf, _MOST):
            return f"above {self.least:g}" if self.open else f"of at least {self.least:g}"
        return f"from {self.least:,g} to {self.most:,g}{ends}"


_MOST = 2**63 - 1
"""Largest whole number that torch and NumPy take."""

Count: TypeAlias = Annotated[int, Between(1, _MOST)]
"""How many of something there are; at least one."""

Size: TypeAlias = Annotated[int, Between(0, _MOST)]
"""How many of something there are; may be none."""

Seed: TypeAlias = Annotated[int, Between(0, _MOST)]
"""Of a generator of random numbers."""

TokenId: TypeAlias = Annotated[int, Between(0, 2**31 - 1)]
"""Of a tokenizer."""

Resamples: TypeAlias = Annotated[int, Between(1, 1_000_000)]
"""Resamples of a bootstrap; more take minutes and change no digit that is shown."""

Confidence: TypeAlias = Annotated[float, Between(0, 1, open=True)]
"""Share of resampled values inside an interval."""

Share: TypeAlias = Annotated[float, Between(0, 1)]
"""Part of a whole."""

Positive: TypeAlias = Annotated[float, Between(0, math.inf, open=True)]
"""A finite number above 0."""

NotNegative: TypeAlias = Annotated[float, Between(0, math.inf)]
"""A finite number of at least 0."""


class Anything:
    """Any value of the type; the function judges it, and knows better words."""


Measured: TypeAlias = Annotated[float, Anything()]
"""A number that was computed, and may not be finite."""

_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a value: where in it, what is there, what should be."""

    where: str
    found: object
    expected: str
    why: str = ""


_Test: TypeAlias = Callable[[Any], _Fault | None]


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose arguments are held to its annotations at every call.

    Raises:
        InputError: An argument is of another type or out of range; names it, what was found and what was expected.
    """
    code = inspect.unwrap(function).__code__
    names = code.co_varnames[: code.co_argcount]
    tests: dict[str, _Test] = {}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not tests:  # annotations may name what is defined further down
            tests.update(_tests_of(function) or {"": lambda value: None})
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if (holds := tests.get(name)) is not None and (fault := holds(value)) is not None:
                raise InputError(_message(function.__qualname__, name, fault))
        return function(*args, **kwargs)

    call.__checked__ = True  # type: ignore[attr-defined]
    return call


def check_fields(instance: Any, error: type[InputError] = InputError, *, options: bool = False) -> None:
    """Hold the fields of a dataclass to their annotations; for its `__post_init__`.

    Args:
        instance: What was made.
        error: Class of the error.
        options: Whether the command has an option of each field's name, which the message gives then.

    Raises:
        InputError: A field is of another type or out of range.
    """
    kind: Any = type(instance)
    tests = _field_tests(kind)
    for entry in fields(instance):
        if (fault := tests[entry.name](getattr(instance, entry.name))) is not None:
            fix = f" (--{entry.name.replace('_', '-')})" if options else ""
            raise error(_message(kind.__name__, entry.name, fault) + fix)


def _message(owner: str, name: str, fault: _Fault) -> str:
    owner = owner.removesuffix(".__init__")
    kind = type(fault.found).__name__
    found = shown(fault.found) if isinstance(fault.found, str | Real | NoneType) else f"a {kind}"
    shape = getattr(fault.found, "shape", None)
    shape = "" if shape is None else f" of shape {list(shape)} and dtype {fault.found.dtype}"  # type: ignore[attr-defined]
    kind = f" ({kind})" if isinstance(fault.found, str | Real) else shape
    why = f": {fault.why}" if fault.why else ""
    return f"{owner}: {name}{fault.where} is {found}{kind}{why}; expected {fault.expected}"


def _tests_of(function: Callable[..., Any]) -> dict[str, _Test]:
    hints = get_type_hints(function, include_extras=True)
    return {name: tester(hint) for name, hint in hints.items() if name != "return" and hint is not Any}


@functools.cache
def _field_tests(kind: Any) -> dict[str, _Test]:
    hints = get_type_hints(kind, include_extras=True)
    return {entry.name: tester(hints[entry.name]) for entry in fields(kind)}


def tester(hint: Any) -> _Test:
    """What holds a value to an annotation."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (Any, object) or isinstance(hint, TypeVar):
        return lambda value: None
    if origin is Annotated:
        ranges = [extra for extra in inner[1:] if isinstance(extra, Between)]
        if any(isinstance(extra, Anything) for extra in inner[1:]):
            return _instance(Real) if inner[0] is float else lambda value: None
        return _number(inner[0], ranges[0]) if ranges else tester(inner[0])
    if hint in (int, float):
        return _number(hint, None)
    if hint is str:
        return _text
    if origin is Literal:
        return _one_of(inner)
    if origin in (Union, UnionType):
        return _any_of(inner)
    if origin is tuple:
        return _sequence(inner[0], exact=tuple) if inner[-1] is Ellipsis else _tuple(inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(*inner)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(inner[0], exact=origin if origin in (list,) else None)
    if origin is not None and issubclass(origin, Iterable):
        return _iterable(inner[0])
    return _instance(hint)


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
    if _is_path(hint):
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


def _is_path(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, os.PathLike)


def _number(kind: Any, within: Between | None) -> _Test:
    allowed: Any = Real if kind is float else Integral
    expected = words(kind) + (f" {within}" if within else "")

    def test_number(value: Any) -> _Fault | None:
        if isinstance(value, bool) or not isinstance(value, allowed):
            return _Fault("", value, expected)
        if not (-_MOST <= int(value) <= _MOST if isinstance(value, Integral) else math.isfinite(value)):
            too_large = isinstance(value, Integral) and within is None
            return _Fault("", value, f"{expected} below 2**63" if too_large else expected)
        return None if within is None or within.holds(value) else _Fault("", value, expected)

    return test_number


def _text(value: Any) -> _Fault | None:
    if not isinstance(value, str):
        return _Fault("", value, "text")
    if not value.isascii() and (half := _HALF.search(value)):
        return _Fault("", value, "text that UTF-8 can write", f"character {half.start()} is half of a surrogate pair")
    return None


def _path(value: Any) -> _Fault | None:
    if not isinstance(value, str | os.PathLike):
        return _Fault("", value, "a path")
    return _Fault("", str(value), "a path", "no path has a NUL character") if "\0" in os.fspath(value) else None


def _one_of(values: tuple[Any, ...]) -> _Test:
    expected = " or ".join(map(repr, values))

    def test_value(value: Any) -> _Fault | None:
        if isinstance(value, str | int) and value in values:
            return None
        near = nearest(value, [name for name in values if isinstance(name, str)]) if isinstance(value, str) else []
        return _Fault("", value, expected + (f"; did you mean {near[0]!r}?" if near else ""))

    return test_value


def _any_of(kinds: tuple[Any, ...]) -> _Test:
    if str in kinds and any(map(_is_path, kinds)):
        kinds = tuple(kind for kind in kinds if kind is not str)
        tests = [_path if _is_path(kind) else tester(kind) for kind in kinds]
    else:
        tests = [tester(kind) for kind in kinds]
    expected = words(Union[kinds])  # noqa: UP007

    def test_kinds(value: Any) -> _Fault | None:
        best = None
        for one in tests:
            if (fault := one(value)) is None:
                return None
            if fault.where or fault.why:  # the right kind of thing, with something wrong in it
                best = fault
        return best or _Fault("", value, expected)

    return test_kinds


def _tuple(kinds: tuple[Any, ...]) -> _Test:
    tests = [tester(kind) for kind in kinds]
    expected = f"a tuple of {len(kinds)}: {', '.join(map(words, kinds))}"

    def test_tuple(value: Any) -> _Fault | None:
        if not isinstance(value, tuple | list) or len(value) != len(tests):
            return _Fault("", value, expected)
        return _inside(zip(range(len(tests)), value, strict=True), dict(enumerate(tests)).__getitem__)

    return test_tuple


def _sequence(kind: Any, exact: type | None) -> _Test:
    one, expected = tester(kind), f"a sequence, each {words(kind)}"

    def test_sequence(value: Any) -> _Fault | None:
        if exact is list and not isinstance(value, list):
            return _Fault("", value, f"a list, each {words(kind)}")
        listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        if not listed or isinstance(value, str | bytes | Mapping) or getattr(value, "ndim", 1) == 0:
            lazy = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
            return _Fault("", value, expected + (", such as list(...) of it" if lazy else ""))
        return _inside(enumerate(value), lambda place: one)

    return test_sequence


def _iterable(kind: Any) -> _Test:
    one, expected = tester(kind), f"a sequence, each {words(kind)}"

    def test_iterable(value: Any) -> _Fault | None:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            return _Fault("", value, expected)
        return _inside(enumerate(value), lambda place: one) if isinstance(value, Sequence) else None

    return test_iterable


def _mapping(key: Any, kind: Any) -> _Test:
    of_key, of_value, expected = tester(key), tester(kind), f"a mapping of {words(key)} to {words(kind)}"

    def test_mapping(value: Any) -> _Fault | None:
        if not isinstance(value, Mapping):
            return _Fault("", value, expected)
        for name in value:
            if (fault := of_key(name)) is not None:
                return _Fault("", name, f"{fault.expected} for every key", fault.why)
        return _inside(value.items(), lambda name: of_value)

    return test_mapping


def _inside(values: Iterable[tuple[Any, Any]], test_at: Callable[[Any], _Test]) -> _Fault | None:
    for place, value in values:
        if (fault := test_at(place)(value)) is not None:
            return _Fault(f"[{place!r}]{fault.where}", fault.found, fault.expected, fault.why)
    return None


def _instance(hint: Any) -> _Test:
    if _is_path(hint):
        return lambda value: _path(value) if isinstance(value, os.PathLike) else _Fault("", value, "a pathlib.Path")
    kind = get_origin(hint) or hint
    expected = words(hint)

    def test_instance(value: Any) -> _Fault | None:
        return None if isinstance(value, kind) else _Fault("", value, expected)

    return test_instance
