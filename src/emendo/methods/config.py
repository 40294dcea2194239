"""A method as data: one value for each axis of the engine, checked wherever it comes from (`checks.py`).

Nothing here runs. `catalog.py` holds the named methods, `presets.py` the published settings by model, and
`resolve.py` puts the two and the user's own settings together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from emendo.editing.keys import KeySettings
from emendo.editing.value_search import TargetSettings
from emendo.errors import InputError, MethodError
from emendo.methods.checks import check_ranges, check_together, check_types, leaves, parse
from emendo.solve import Preservation
from emendo.solve.distribution import Distribution, distribution_steps
from emendo.suggest import unknown_setting

ADDED_SETTINGS: Mapping[str, Any] = {"target.word_end_weight": 0.0}
"""Settings that methods have got since edits are kept, with the value at which an edit is what it was without them."""


@dataclass(frozen=True)
class ContextSettings:
    """Which prefix contexts prompts are put in; schemes as in `emendo.text.prefix_contexts`."""

    scheme: Literal["memit", "rome", "fixed", "none"] = "memit"


@dataclass(frozen=True)
class MomentSettings:
    """Where the second moment of preserved keys comes from.

    Args:
        source: ``"self"`` (text sampled from the model), a ``.txt`` or ``.jsonl`` file, or a Hugging Face data set as
            ``"hf:ID"`` or ``"hf:ID:CONFIG"``.
        multiple: Tokens as a multiple of d_in.
        exclude_first: Leave out the first position of every sequence, where many models keep an outlier.
    """

    source: str = "self"
    multiple: float = 10
    exclude_first: bool = False


@dataclass(frozen=True)
class Memorization:
    """How firmly an edit must hold.

    Args:
        s: 0 for equality, above 0 for least squares with that weight on the dual diagonal.
        equality_alone: A single request is memorized with equality whatever `s` is.
    """

    s: float = 0.0
    equality_alone: bool = False

    def strength(self, n: int) -> float:
        """The s that `n` requests are solved with."""
        return 0.0 if n == 1 and self.equality_alone else self.s


@dataclass(frozen=True)
class HistorySettings:
    """What earlier edits in the model count in the preservation metric: H = weight · Σ kᵀk over their keys.

    Args:
        weight: 0 for none. With ``1/s`` (1 for MEMIT) an earlier edit counts exactly like one of the present batch.

    Source: sequential MEMIT and the cache of AlphaEdit (arXiv 2410.02355); ENCORE (arXiv 2502.01636).
    """

    weight: float = 0.0


@dataclass(frozen=True)
class PostStep:
    """What is done to the finished update of each layer.

    Args:
        kind: ``"none"``; ``"rect"`` keeps the entries that change their weight most, relatively; ``"prune"`` damps
            singular values of the total update (earlier ones included) above the largest of W₀; ``"cap"`` scales the
            update to a largest Frobenius norm.
        keep: Share of the entries that ``"rect"`` keeps.
        log_base: Of the logarithm that ``"prune"`` damps with.
        max_ratio: Largest ‖ΔW‖/‖W‖ that ``"cap"`` leaves.

    Source: RECT (arXiv 2401.04700), PRUNE (arXiv 2405.16821).
    """

    kind: Literal["none", "rect", "prune", "cap"] = "none"
    keep: float = 0.4
    log_base: float = math.e
    max_ratio: float = 0.1


@dataclass(frozen=True)
class MethodConfig:
    """One point in the engine's parameter space.

    Args:
        name: How users call it.
        source: Paper and equation, or what was measured.
        deviations: Where the authors' public code differs from the paper, or this method from their code.
        presets: The method whose settings by model apply to this one of the catalog too; its own where empty.
        layers: Edited layers, ascending; empty until resolved for a model.
        span: Number of layers that the method edits by default.
        batching: ``"joint"`` solves all requests at once; ``"one_by_one"`` writes each on the model edited so far.
        distribution: How the residual is spread over the layers.
        contexts: Prefix contexts.
        keys: Which keys an edit is stored under.
        target: The target search.
        moments: Source and size of the second moment.
        preservation: f(C).
        memorization: s.
        history: H.
        post: What is done to the finished update.

    Raises:
        MethodError: A value of the wrong type or range, or values that exclude each other.
    """

    name: str
    source: str
    deviations: tuple[str, ...] = ()
    presets: str = ""
    layers: tuple[int, ...] = ()
    span: int = 1
    batching: Literal["joint", "one_by_one"] = "joint"
    distribution: Distribution = "single"
    contexts: ContextSettings = field(default_factory=ContextSettings)
    keys: KeySettings = field(default_factory=KeySettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    moments: MomentSettings = field(default_factory=MomentSettings)
    preservation: Preservation = field(default_factory=Preservation)
    memorization: Memorization = field(default_factory=Memorization)
    history: HistorySettings = field(default_factory=HistorySettings)
    post: PostStep = field(default_factory=PostStep)

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(self.settings())
        check_together(self)

    @property
    def written_layers(self) -> tuple[int, ...]:
        """The edited layers that get an update."""
        return tuple(step.layer for step in distribution_steps(self.distribution, self.layers))

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted name, as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value, _ in leaves(self)
            if name not in _LABELS
        }


_LABELS = ("name", "source", "deviations", "presets")
"""What a method is called and where it comes from: not settings."""

_FIXED = (*_LABELS, "layers", "span")
"""Not settable with --set: names, and layers, which have their own argument."""


def apply_settings(config: MethodConfig, settings: Mapping[str, Any]) -> MethodConfig:
    """A copy of `config` with some settings replaced.

    Args:
        config: The method to start from.
        settings: Values by dotted name, such as ``{"target.steps": 20}``; strings are read as the field's type.

    Raises:
        MethodError: An unknown name (with the nearest known ones), a value of the wrong type or range, or values that
            exclude each other.
    """
    return _replaced(config, read_settings(config, settings))


def read_settings(config: MethodConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings as values of their types, each checked by itself: what goes together is not looked at.

    Raises:
        MethodError: An unknown name (with the nearest known ones) or a value of the wrong type or range.
    """
    types = {name: kind for name, _, kind in leaves(config) if name not in _FIXED}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in types:
            raise MethodError(unknown_setting(name, types))
        values[name] = parse(name, value, types[name])
    check_ranges(values)
    return values


def _replaced(config: MethodConfig, values: Mapping[str, Any]) -> MethodConfig:
    """The config with all values at once: what only one of two values would make of it may be refused."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
    changed = sections.pop("", {})
    for section, given in sections.items():
        try:
            changed[section] = replace(getattr(config, section), **given)
        except InputError as error:
            told = ", ".join(f"{section}.{leaf}={value!r}" for leaf, value in given.items())
            raise MethodError(f"{told}: {error}") from error
    return replace(config, **changed)
