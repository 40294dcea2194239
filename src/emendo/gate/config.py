"""What a gate checks, and its limits: a TOML file, read strictly.

A file declares every check that is made; there are no limits hidden in code. The packaged one (`emendo gate
--print-default`) is the default, with the measurements behind its limits in docs/guides/gate.md.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from emendo.errors import GateConfigError
from emendo.gate.canaries import PACKAGED
from emendo.io.plain_file import read_plain_text
from emendo.suggest import unknown_name

DEFAULT = "default"
"""The name of the packaged configuration, where a file is asked for."""

_FIX = "`emendo gate --print-default` shows a whole file"

_MOST_BYTES = 2**20
"""Of a configuration; the packaged one has some thousand."""

_MOST_PARTS = 20
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_DEEP_KEY = re.compile(f"(?:{_PART}){{{_MOST_PARTS}}}", re.ASCII)
"""A dotted key that no configuration has: reading it takes time and memory with the square of its parts."""

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CheckConfig(_Strict):
    """A check.

    Attributes:
        limit: The last value that passes.
        unmeasured: Whether the edit passes or fails where the check cannot be measured.
    """

    limit: Amount
    unmeasured: Literal["pass", "fail"] = "fail"


class ShareConfig(CheckConfig):
    """A check of a share of prompts.

    Attributes:
        judge: What is held against the limit: the share itself, or the end of its 95 % Wilson interval that is worse
            (``"worst_end"``: the edit has to show that it is good) or better for the edit (``"best_end"``: it has to be
            shown bad).
    """

    limit: Share
    judge: Literal["estimate", "worst_end", "best_end"] = "estimate"


class MovedConfig(ShareConfig):
    """A check of the share of prompts that moved.

    Attributes:
        above: KL(reference ‖ edited) of the next token, in nats, above which a prompt counts as moved.
    """

    above: Amount = 0.1


class SuccessConfig(ShareConfig):
    """A check of the share of prompts that give the new target.

    Attributes:
        success: ``"argmax"``: every target token is the most likely one; ``"beats_true"``: the target is likelier than
            the true one, which the record must name; ``"generated"``: greedy continuation begins with the target.
    """

    success: Literal["argmax", "beats_true", "generated"] = "argmax"


class Checks(_Strict):
    """Every check that can be declared; one that is None is not made.

    Attributes:
        efficacy: Share of requests that give the new target; at least.
        paraphrase: Share of paraphrase prompts that give it; at least.
        neighborhood_flips: Share of neighbourhood prompts with another most likely next token; at most.
        neighborhood_lost: Share of the neighbourhood prompts that gave the true target by argmax and no longer do.
        canary_kl_mean: Mean over canary prompts of KL(reference ‖ edited) of the next token, in nats; at most.
        canary_kl_p99: Its 99th percentile.
        canary_moved: Share of canary prompts whose KL is above the check's `above`; at most.
        canary_flips: Share of canary prompts with another most likely next token; at most.
        text_perplexity: Perplexity of canary texts, edited over reference, of the kind where it is largest; at most.
        text_kl: KL(reference ‖ edited) a token of canary texts, in nats, mean of the kind where it is largest; at most.
        text_flips: Of the tokens of canary texts that the reference gave half or more of the probability, the share
            with another most likely one, of the kind where it is largest; at most.
        perplexity_ratio: Perplexity of the packaged text, edited over reference; at most.
        norm_growth: ‖ΔW‖_F / ‖W‖_F of all updates together, in the layer where it is largest; at most.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of all updates together, in the layer where it is largest; at most.
    """

    efficacy: SuccessConfig | None = None
    paraphrase: SuccessConfig | None = None
    neighborhood_flips: ShareConfig | None = None
    neighborhood_lost: ShareConfig | None = None
    canary_kl_mean: CheckConfig | None = None
    canary_kl_p99: CheckConfig | None = None
    canary_moved: MovedConfig | None = None
    canary_flips: ShareConfig | None = None
    text_perplexity: CheckConfig | None = None
    text_kl: CheckConfig | None = None
    text_flips: CheckConfig | None = None
    perplexity_ratio: CheckConfig | None = None
    norm_growth: CheckConfig | None = None
    relative_cost: CheckConfig | None = None

    def declared(self) -> dict[str, CheckConfig]:
        """The checks to make, by name, in the order of reports."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: check for name, check in found.items() if check is not None}

    @property
    def ask_prompts(self) -> bool:
        """Whether a check is about canary prompts."""
        return any((self.canary_kl_mean, self.canary_kl_p99, self.canary_moved, self.canary_flips))

    @property
    def read_texts(self) -> bool:
        """Whether a check is about canary texts."""
        return any((self.text_perplexity, self.text_kl, self.text_flips))


class MonitorConfig(_Strict):
    """When the monitor of sequential editing warns: above any of these; one that is None is not looked at.

    Attributes:
        norm_growth: ‖ΔW‖_F / ‖W‖_F of all updates together, in the layer where it is largest.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of all updates together, in the layer where it is largest.
        disturbed: Change of what earlier edits had written at their keys, relative to it, in the worst layer; without
            keys that a new value took over with their facts.
        canary_kl_mean: Mean over canary prompts of KL(unedited ‖ edited) of the next token, in nats.
        canary_flips: Share of canary prompts with another most likely next token.
    """

    norm_growth: Amount | None = None
    relative_cost: Amount | None = None
    disturbed: Amount | None = None
    canary_kl_mean: Amount | None = None
    canary_flips: Share | None = None

    def limits(self) -> dict[str, float]:
        """The signals that are looked at, and their limits."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: limit for name, limit in found.items() if limit is not None}


class Canaries(_Strict):
    """Which canaries.

    Attributes:
        files: `PACKAGED`, and JSONL files of one's own, relative to the configuration.
    """

    files: Annotated[list[str], Field(min_length=1)] = [PACKAGED]


class GateConfig(_Strict):
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
    return unknown_name("setting", str(place[-1]), section.model_fields, where)


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
