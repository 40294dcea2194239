"""Functions and dataclasses that hold what they are given to their annotations."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from numbers import Real
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args, get_type_hints, overload

from emendo.arguments.holding import Fault, Test, holder_of
from emendo.arguments.words import shown
from emendo.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


@overload
def checked(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def checked(*, sizes: bool) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def checked(function: Callable[P, R] | None = None, /, *, sizes: bool = True) -> Any:
    """The function, whose arguments are held to its annotations at every call.

    Args:
        function: What is decorated.
        sizes: Whether tensors have to be of the annotated dimensions and dtype. Without it any tensor passes: the
            function looks itself, and has better words.

    Raises:
        InputError: An argument is of another type or out of range; names it, what was found and what was expected.
    """
    return functools.partial(_checked, sizes=sizes) if function is None else _checked(function, sizes=sizes)


def _checked(function: Callable[P, R], *, sizes: bool) -> Callable[P, R]:
    code = inspect.unwrap(function).__code__
    names = code.co_varnames[: code.co_argcount]
    tests: dict[str, Test] = {}
    of_sizes = False

    def hold(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, value in zip(names, args, strict=False):
            if name in tests and (fault := tests[name](value)) is not None:
                raise InputError(_message(_called(function, args), name, fault))
        for name, value in kwargs.items():
            if name in tests and (fault := tests[name](value)) is not None:
                raise InputError(_message(_called(function, args), name, fault))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal of_sizes
        if not tests:  # annotations may name what is defined further down
            of_sizes = sizes and any(map(_has_sizes, _hints_of(function).values()))
            tests.update(checks_of(function, sizes=sizes) or {"": lambda value: None})
        if of_sizes:
            with _one_size():
                hold(args, kwargs)
        else:
            hold(args, kwargs)
        return function(*args, **kwargs)

    call.__checked__ = functools.partial(checks_of, function, sizes=sizes)  # type: ignore[attr-defined]
    return call


def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """What a caller knows a function by: an inherited method by the class of its object."""
    kind = type(args[0]) if args else NoneType
    owner, dot, _ = function.__qualname__.rpartition(".")
    inherited = dot and any(base.__qualname__ == owner for base in kind.__mro__[1:])
    return f"{kind.__name__}.{function.__name__}" if inherited else function.__qualname__


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


def check_width(name: str, tensor: Any, width: int) -> None:
    """Hold the last dimension of a tensor to a size that no annotation knows.

    Raises:
        InputError: It is another.
    """
    if tensor.shape[-1] != width:
        raise InputError(f"{name} is of shape {list(tensor.shape)}; expected {width} numbers in its last dimension")


def _message(owner: str, name: str, fault: Fault) -> str:
    owner = owner.removesuffix(".__init__")
    kind = type(fault.found).__name__
    found = shown(fault.found) if isinstance(fault.found, str | Real | NoneType) else f"a {kind}"
    shape = getattr(fault.found, "shape", None)
    shape = "" if shape is None else f" of shape {list(shape)} and dtype {fault.found.dtype}"  # type: ignore[attr-defined]
    kind = f" ({kind})" if isinstance(fault.found, str | Real) else shape
    why = f": {fault.why}" if fault.why else ""
    return f"{owner}: {name}{fault.where} is {found}{kind}{why}; expected {fault.expected}"


def _one_size() -> AbstractContextManager[object]:
    """Inside, a dimension of one name is of one size in all tensors of a call: jaxtyping's memory of them."""
    known = sys.modules.get("jaxtyping")  # without it there is no tensor to look at
    return nullcontext() if known is None else known.jaxtyped("context")


def checks_of(function: Callable[..., Any], *, sizes: bool = True) -> dict[str, Test]:
    """What holds each argument of a function to its annotation.

    Args:
        function: With annotations.
        sizes: See `checked`.
    """
    return {name: holder_of(hint, sizes) for name, hint in _hints_of(function).items() if hint is not Any}


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function's arguments."""
    known = inspect.unwrap(function).__globals__
    hints = get_type_hints(function, known, _Exported(known), include_extras=True)
    return {name: hint for name, hint in hints.items() if name != "return"}


def _has_sizes(hint: Any) -> bool:
    """Whether an annotation names dimensions, which then have to be the same in all arguments."""
    return hasattr(hint, "dim_str") or any(map(_has_sizes, get_args(hint)))


class _Exported(dict[str, Any]):
    """Names that a module imports for type checkers alone, such as EditableModel where torch is to stay away.

    What neither Emendo nor torch exports stands for anything: there the function looks itself.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, name: str) -> Any:
        if name in self._known or hasattr(builtins, name):
            raise KeyError(name)
        for package in ("emendo", "emendo.models"):
            exported = sys.modules.get(package)
            if exported is not None and name in exported.__all__:
                return getattr(exported, name)
        return getattr(sys.modules.get("torch"), name, Any)


@functools.cache
def _field_tests(kind: Any) -> dict[str, Test]:
    hints = get_type_hints(kind, include_extras=True)
    return {entry.name: holder_of(hints[entry.name]) for entry in fields(kind)}
