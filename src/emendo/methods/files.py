"""A user's method from a YAML file: a named method to start from, and what is different.

::

    base: emmet
    name: my-emmet              # the file's name where it is left out
    layers: [5]                 # the preset's for the model where they are left out
    settings:
      target.steps: 40
      preservation: {weight: 2} # the same as preservation.weight: 2

It goes wherever a method's name goes: ``--method my-emmet.yaml``, ``method=`` in Python, ``methods:`` of an
experiment. Presets for the model apply to what it starts from, and its own values on top of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from emendo.arguments import checked
from emendo.arguments.suggest import unknown_name
from emendo.errors import MethodError
from emendo.methods.catalog import CATALOGUE, method_named
from emendo.methods.config import Method, read_settings

_ENDINGS = (".yaml", ".yml")


class _Content(BaseModel):
    """The fields of such a file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    base: str
    name: str | None = None
    source: str | None = None
    layers: list[int] | None = None
    settings: dict[str, Any] = {}


@dataclass(frozen=True)
class MethodFile:
    """What a file of settings says.

    Attributes:
        path: Where it is.
        base: The catalogue's entry that it starts from.
        name: What the method is called.
        source: Where it comes from, in words.
        layers: Edited layers; None leaves them to the preset, or to the rule of the method.
        settings: By dotted name, as values of their types.
    """

    path: Path
    base: Method
    name: str
    source: str
    layers: tuple[int, ...] | None
    settings: dict[str, Any]


def is_method_file(method: str) -> bool:
    """Whether what stands for a method is the path of a file: it ends in ``.yaml`` or ``.yml``."""
    return method.lower().endswith(_ENDINGS)


@checked
def read_method_file(path: str | Path) -> MethodFile:
    """A user's method from its file.

    Raises:
        MethodError: The file is missing or no YAML, a field or a setting is unknown, a value cannot be used, or the
            name belongs to a method of the catalogue.
    """
    from emendo.io import strict_yaml
    from emendo.io.plain_file import read_plain_text

    path = Path(path)
    try:
        content = _Content.model_validate(strict_yaml.loads(read_plain_text(path, encoding="utf-8")))
    except ValidationError as error:
        problems = "; ".join(_problem(problem) for problem in error.errors())
        raise MethodError(f"{str(path)!r} is not a method: {problems} (--method {path})") from error
    except (OSError, ValueError) as error:
        raise MethodError(
            f"cannot read {str(path)!r}: {error}; expected the name of a method (`emendo methods` lists them), or a "
            "YAML file with base: and settings: (--method)"
        ) from error
    try:
        base = method_named(content.base)
        settings = read_settings(base, dict(_flat(content.settings)))
    except MethodError as error:
        raise MethodError(f"{str(path)!r}: {error}") from error
    name = path.stem if content.name is None else content.name
    if not name.strip() or CATALOGUE.spelled(name) is not None:
        found = f"{name!r} is a method of the catalogue" if name.strip() else "the name is empty"
        raise MethodError(f"{str(path)!r}: {found}; give yours a name of its own (name: my-{base.name})")
    source = content.source or f"{base.name} with settings of {path.name}: {base.source}"
    layers = None if content.layers is None else tuple(content.layers)
    return MethodFile(path, base, name, source, layers, settings)


@checked
def spelled_out(
    method: str, settings: Mapping[str, Any], layers: Sequence[int] | None
) -> tuple[str, dict[str, Any], tuple[int, ...] | None]:
    """A method, its settings and layers with a file's content in the place of its path.

    What is kept of an experiment then needs no file beside it.

    Args:
        method: A name in any case, or a path. A name that nobody knows stays as it is.
        settings: Win over the file's.
        layers: Win over the file's.

    Raises:
        MethodError: A file that cannot be used.
    """
    chosen = None if layers is None else tuple(layers)
    if not is_method_file(method):
        return CATALOGUE.spelled(method) or method, dict(settings), chosen
    own = read_method_file(method)
    values = {name: "none" if value is None else value for name, value in own.settings.items()}
    return own.base.name, {**values, **settings}, own.layers if chosen is None else chosen


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name, whether the file has them dotted or in groups.

    Raises:
        MethodError: A setting is given in both forms.
    """
    seen: set[str] = set()
    for name, value in settings.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else iter([(f"{prefix}{name}", value)])
        for dotted, one in inner:
            if dotted in seen:
                raise MethodError(f"{dotted} is given twice, dotted and in its group; expected each setting once")
            seen.add(dotted)
            yield dotted, one


def _problem(problem: Any) -> str:
    """One problem of a file in our words."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_name("field", place, _Content.model_fields, "settings go under settings:")
    if problem["type"] == "missing":
        return f"{place} is missing; expected the method that it starts from (base: emmet)"
    if problem["type"] == "model_type":
        return f"expected fields such as base: and settings:, found {problem['input']!r:.80}"
    return f"{place}: {problem['msg'].lower()}, found {problem['input']!r:.80}"
