"""Methods axis by axis: what each chooses, beside the plain default of every axis.

Everything is read off the configurations, so that a new axis, setting or method shows up by being there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emendo.methods import MethodConfig

Axes = dict[str, dict[str, Any]]
"""Settings by axis and name; an axis of a single value has it under its own name."""

_PER_MODEL = ("layers",)
"""Not part of a method until it is resolved for a model."""


@dataclass(frozen=True)
class Composition:
    """A table of methods, one column an axis.

    Attributes:
        plain: The plain default of every setting in which some method differs, and of every axis of a single value.
        methods: For each method, its value of every axis of a single value, and elsewhere what differs from the plain
            default.
        alike: Axes in which no method differs, with their settings.
    """

    plain: Axes
    methods: dict[str, Axes]
    alike: Axes


def compose(methods: Mapping[str, MethodConfig]) -> Composition:
    """The composition table of some methods."""
    default = by_axis(plain_settings())
    settings = {name: by_axis(config.settings()) for name, config in methods.items()}
    varied = {
        axis: {
            name: value
            for name, value in values.items()
            if single(axis, values) or any(method[axis][name] != value for method in settings.values())
        }
        for axis, values in default.items()
    }
    plain = {axis: values for axis, values in varied.items() if values}
    rows = {
        method: {
            axis: {
                name: axes[axis][name]
                for name, value in values.items()
                if single(axis, default[axis]) or axes[axis][name] != value
            }
            for axis, values in plain.items()
        }
        for method, axes in settings.items()
    }
    return Composition(plain, rows, {axis: default[axis] for axis, values in varied.items() if not values})


def plain_settings(kind: str = MethodConfig.kind) -> dict[str, Any]:
    """The plain default of every setting, by dotted name; a baseline's settings have none."""
    return MethodConfig(name="", source="").settings() if kind == MethodConfig.kind else {}


def by_axis(settings: Mapping[str, Any]) -> Axes:
    """Settings by dotted name, grouped by axis."""
    axes: Axes = {}
    for name, value in settings.items():
        axis, _, leaf = name.partition(".")
        if axis not in _PER_MODEL:
            axes.setdefault(axis, {})[leaf or axis] = value
    return axes


def single(axis: str, values: Mapping[str, Any]) -> bool:
    """Whether an axis is one value and not a group of settings."""
    return list(values) == [axis]
