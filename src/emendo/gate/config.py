"""What a gate checks, and its limits: a TOML file, read strictly.

A file declares every check that is made; there are no limits hidden in code. The packaged one (`emendo gate
--print-default`) is the default, with the measurements behind its limits in docs/lab/gate.md.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from emendo.arguments import checked
from emendo.arguments.suggest import unknown_name
from emendo.errors import GateConfigError
from emendo.gate.canaries import PACKAGED
from emendo.gate.sections import Amount, Checks, Share, Strict
from emendo.io.former_names import MONITOR_FIELDS, with_current_names
from emendo.io.plain_file import read_plain_text

DEFAULT = "default"
"""The name of the packaged configuration, where a file is asked for."""

_FIX = "`emendo gate --print-default` shows a whole file"

_MOST_BYTES = 2**20
"""Of a configuration; the packaged one has some thousand."""

_MOST_PARTS = 20
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_DEEP_KEY = re.compile(f"(?:{_PART}){{{_MOST_PARTS}}}", re.ASCII)
"""A dotted key that no configuration has: reading it takes time and memory with the square of its parts."""


class MonitorConfig(Strict):
    """When the monitor of sequential editing warns: above any of these; one that is None is not looked at.

    Attributes:
        norm_growth: ‖ΔW‖_F / ‖W‖_F of all updates together, in the layer where it is largest.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of all updates together, in the layer where it is largest.
        interference: Change of what earlier edits had written at their keys, relative to it, in the worst layer;
            without keys that a new value took over with their facts.
        canary_kl_mean: Mean over canary prompts of KL(unedited ‖ edited) of the next token, in nats.
        canary_flips: Share of canary prompts with another most likely next token.
    """

    norm_growth: Amount | None = None
    relative_cost: Amount | None = None
    interference: Amount | None = None
    canary_kl_mean: Amount | None = None
    canary_flips: Share | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_files(cls, given: Any) -> Any:
        """What a file says in the words of an earlier version."""
        return with_current_names(given, MONITOR_FIELDS) if isinstance(given, dict) else given

    def limits(self) -> dict[str, float]:
        """The signals that are looked at, and their limits."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: limit for name, limit in found.items() if limit is not None}


class Canaries(Strict):
    """Which canaries.

    Attributes:
        files: `PACKAGED`, and other JSONL files, relative to the configuration.
    """

    files: Annotated[list[str], Field(min_length=1)] = [PACKAGED]  # noqa: RUF012  # pydantic copies it


class GateConfig(Strict):
    """A gate.

    Attributes:
        reference: What the edited model is compared with: ``"base"``, the unedited model, so that small harms add up
            over a sequence of edits; or ``"current"``, the model with the updates that are in it already. Norm growth
            and relative cost are of all updates together either way.
        canaries: Which canary prompts and texts.
        checks: The checks and their limits.
        monitor: When the monitor of sequential editing warns.
    """

    reference: Literal["base", "current"] = "base"
    canaries: Canaries = Canaries()
    checks: Checks = Checks()
    monitor: MonitorConfig = MonitorConfig()
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def folder(self) -> Path | None:
        """Where relative paths of its file begin; None: the working directory."""
        return self._folder


def default_text() -> str:
    """The packaged configuration, with its comments."""
    return (resources.files("emendo") / "data" / "gate.toml").read_text(encoding="utf-8")


def default_config() -> GateConfig:
    """The packaged configuration."""
    return parse_config(default_text(), "the packaged gate.toml")


@checked
def read_config(file: str | Path) -> GateConfig:
    """A configuration from a TOML file, or the packaged one for `DEFAULT`.

    Raises:
        GateConfigError: The file is missing, is not TOML, or holds something else than a gate; every problem is named.
    """
    if file == DEFAULT:
        return default_config()
    path = Path(file).expanduser()
    try:
        text = read_plain_text(path, _MOST_BYTES)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise GateConfigError(
            f"cannot read a gate's configuration from {str(file)!r}: {error}; expected a TOML file or {DEFAULT!r} "
            f"(--gate FILE, --config FILE); {_FIX}"
        ) from error
    return parse_config(text, str(path), path.absolute().parent)


def parse_config(text: str, source: str, folder: Path | None = None) -> GateConfig:
    """A configuration from TOML text.

    Args:
        text: The text.
        source: How errors name it.
        folder: Where its relative paths begin; None: the working directory.

    Raises:
        GateConfigError: It is not TOML, or holds something else than a gate; every problem is named.
    """
    if _DEEP_KEY.search(text):
        raise GateConfigError(f"{source} has a key of {_MOST_PARTS} parts or more, expected two or three; {_FIX}")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise GateConfigError(f"{source} is not TOML: {error}; {_FIX}") from error
    try:
        config = GateConfig.model_validate(table)
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors()]
        raise GateConfigError(f"{source}: {len(problems)} problem(s); {_FIX}:", problems) from error
    config._folder = folder
    if not config.checks.declared():
        raise GateConfigError(f"{source}: declares no check, so it would let everything in; {_FIX}")
    return config


def _problem(entry: Any) -> str:
    """One problem that pydantic found, in words that name the place and the way out."""
    place = entry["loc"]
    if entry["type"] == "extra_forbidden":
        return _unknown(place)
    if entry["type"] == "model_type":
        return f"{_dotted(place)} = {entry['input']!r}: expected a table, [{_dotted(place)}]"
    return f"{_dotted(place)} = {entry['input']!r}: {entry['msg'].lower()}"


def _unknown(place: tuple[int | str, ...]) -> str:
    section = _section(place[:-1])
    where = f"[{_dotted(place[:-1])}]" if place[:-1] else "the top of the file"
    known = Checks.names() if section is Checks else list(section.model_fields)
    return unknown_name("setting", str(place[-1]), known, where)


def _section(place: tuple[int | str, ...]) -> type[BaseModel]:
    """The section of the configuration at a place."""
    section: type[BaseModel] = GateConfig
    for name in place:
        section = next(_models(section.model_fields[str(name)].annotation))
    return section


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Section types inside an annotation such as ``ShareConfig | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _models(part)


def _dotted(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))
