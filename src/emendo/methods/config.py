"""A method as data: one value for each axis of the engine, checked wherever it comes from (`checks.py`).

Nothing here runs. `catalog.py` holds the named methods, `presets.py` the published settings by model, and
`resolve.py` puts the two and the user's own settings together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from emendo.errors import InputError, MethodError
from emendo.methods.checks import check_ranges, check_together, check_types, leaves, parse
from emendo.methods.explained import unknown_setting
from emendo.methods.settings import (
    ContextSettings,
    HistorySettings,
    KeySettings,
    Memorization,
    MomentSettings,
    PostStep,
    TargetSettings,
)
from emendo.solve.distribution import Distribution, distribution_steps
from emendo.solve.settings import Preservation

ADDED_SETTINGS: Mapping[str, Any] = {"target.word_end_weight": 0.0}
"""Settings that methods have got since edits are kept, with the value at which an edit is what it was without them."""


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
