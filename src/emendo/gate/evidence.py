"""What checks read, and what they give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from emendo.editing.weight_change import LayerChange
from emendo.evaluate import DistributionShift, distribution_shift, wilson_interval
from emendo.gate.look import Look
from emendo.gate.topics import TopicShift
from emendo.models import ModelAdapter

SHOWN = 5
"""Most prompts that a check lists."""


@dataclass(frozen=True)
class Evidence:
    """Everything that checks read.

    Attributes:
        before: The reference.
        after: The model with the edit.
        layers: How far all updates together have moved each layer.
        unpriced: Why `layers` has no relative cost; empty where it has.
        topics: What the edit did to each kind of canary text; empty where none was read.
        adapter: The model, for the text of tokens.
    """

    before: Look
    after: Look
    layers: tuple[LayerChange, ...]
    unpriced: str
    adapter: ModelAdapter
    topics: tuple[TopicShift, ...] = ()

    @cached_property
    def canary_shift(self) -> DistributionShift | None:
        """How far the token after each canary prompt moved; None without a prompt. Several checks read it."""
        before, after = self.before.canaries, self.after.canaries
        return None if before is None or after is None else distribution_shift(before, after, n_resamples=1)


@dataclass(frozen=True)
class Measurement:
    """What a check found, before its limit is looked at.

    Attributes:
        value: The number; None where it cannot be measured.
        n: What it is a mean or share of.
        words: What it is, or why there is no number.
        interval: 95 % Wilson interval of a share.
        details: What it is made of.
    """

    value: float | None
    n: int
    words: str
    interval: tuple[float, float] | None = None
    details: tuple[Mapping[str, Any], ...] = field(default=())


def share_of(hits: int, n: int, words: str, details: Sequence[Mapping[str, Any]] = ()) -> Measurement:
    """The measurement of a share.

    Args:
        hits: How many of them.
        n: Of how many, at least one.
        words: What they are, after their number.
        details: What is shown of them.
    """
    return Measurement(hits / n, n, f"({hits} {words})", wilson_interval(hits, n), tuple(details))
