"""The one validator of settings: types and ranges are annotations, judged by pydantic and told in our words.

A group of settings is a frozen dataclass, a `Section`: `replace` copies it and every copy is judged anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from emendo.errors import EmendoError, MethodError

Count = Annotated[int, Field(gt=0)]
"""A whole number of at least 1."""
Steps = Annotated[int, Field(ge=0)]
"""A whole number of at least 0."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
"""Above 0, at most 1."""
Within = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
"""Above 0 and below 1."""
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""From 0 to 1."""


@dataclass(frozen=True)
class Section:
    """A group of settings; a wrong value is refused wherever it comes from.

    Attributes:
        section: First part of the settings' dotted names.

    Raises:
        MethodError: A value of the wrong type or range.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_values(self, f"{self.section}.")


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value and type of every setting; a section that is not of its class is a leaf of its own."""
    types = _types(node.__class__)
    for entry in fields(node):
        name, value, kind = f"{prefix}{entry.name}", getattr(node, entry.name), types[entry.name]
        if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, kind):
            yield from leaves(value, f"{section_of(value, entry.name)}.")
        else:
            yield name, value, kind


def section_of(value: Any, field: str) -> str:
    """What the dotted names of a section begin with: its own name, or that of the field that it is in."""
    return getattr(value, "section", "") or field


def check_values(node: Any, prefix: str = "") -> None:
    """Refuse a value that is not of its setting's type and range; nothing is converted.

    Raises:
        MethodError: Names the setting, what was found and what was expected.
    """
    for name, value, kind in leaves(node, prefix):
        try:
            _adapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise _refused(name, value, error) from error


def parse(name: str, value: Any, kind: Any) -> Any:
    """A value as its setting's type; text is read, ``none`` where the setting can be off.

    Raises:
        MethodError: It cannot be read as that, or is out of its range.
    """
    if isinstance(value, str) and value.lower() == "none" and type(None) in get_args(kind):
        return None
    adapter = _adapter(kind)
    try:
        if isinstance(value, str):
            return adapter.validate_strings(value)
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise _refused(name, value, error) from error


# Both follow from a type alone; made anew for every value they would take most of the time of importing the catalog.
@cache
def _types(section: Any) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


_EXPECTED = {
    "greater_than": ("gt", "a finite number above"),
    "greater_than_equal": ("ge", "a finite number of at least"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "a number below"),
}


def _refused(name: str, value: Any, error: ValidationError) -> MethodError:
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, EmendoError):  # says itself what to give instead
        return MethodError(f"{name}={value!r}: {cause}")
    if problem["type"] in _EXPECTED:
        bound, words = _EXPECTED[problem["type"]]
        told = f"expected {words} {problem['ctx'][bound]:g}"
    else:
        told = problem["msg"].lower()
    return MethodError(f"{name}={value!r}: {told} ({_fix(name)})")


def _fix(name: str) -> str:
    """The argument that sets a setting: layers have their own, and how many there are follows from it."""
    return "--layers" if name in ("layers", "n_layers") else f"--set {name}=VALUE"
