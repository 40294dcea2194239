"""The engine's axes: a method is one value on each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator

from emendo.arguments.suggest import unknown_name
from emendo.errors import MethodError
from emendo.methods.checks import Count
from emendo.methods.settings import (
    ContextSettings,
    HistorySettings,
    KeySettings,
    Memorization,
    MomentSettings,
    PostStep,
    TargetSettings,
)
from emendo.solve.distribution import DISTRIBUTIONS
from emendo.solve.settings import Preservation


def _known_distribution(name: str) -> str:
    if name not in DISTRIBUTIONS:
        raise MethodError(unknown_name("distribution", name, DISTRIBUTIONS, "--set distribution=VALUE"))
    return name


@dataclass(frozen=True)
class Axes:
    """A value on each axis.

    Args:
        n_layers: Number of layers that the method edits by default.
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
    """

    n_layers: Count = 1
    batching: Literal["joint", "one_by_one"] = "joint"
    distribution: Annotated[str, AfterValidator(_known_distribution)] = "single"
    contexts: ContextSettings = field(default_factory=ContextSettings)
    keys: KeySettings = field(default_factory=KeySettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    moments: MomentSettings = field(default_factory=MomentSettings)
    preservation: Preservation = field(default_factory=Preservation)
    memorization: Memorization = field(default_factory=Memorization)
    history: HistorySettings = field(default_factory=HistorySettings)
    post: PostStep = field(default_factory=PostStep)
