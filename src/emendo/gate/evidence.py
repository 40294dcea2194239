"""What checks read, and what they give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from emendo.editing.weight_change import LayerChange
from emendo.evaluate import Drift, NextTokenLogProbs, Snapshot, measure_drift, wilson_interval
from emendo.gate.canaries import CanarySet
from emendo.gate.firing import FactFiring
from emendo.gate.topics import TokenMove, TopicShift
from emendo.models import EditableModel

SHOWN = 5
"""Most prompts that a check lists."""


@dataclass(frozen=True)
class Evidence:
    """Everything that checks read.

    Attributes:
        before: The reference.
        after: The model with the edit.
        canaries: Prompts and texts that both are asked.
        layers: How far all updates together have moved each layer.
        unpriced: Why `layers` has no relative cost; empty where it has.
        lm: The model, for the text of tokens.
        topics: What the edit did to each kind of canary text; empty where none was read.
        tokens: The tokens after which it moved most.
        firings: The facts that fire most on canary texts.
    """

    before: Snapshot
    after: Snapshot
    canaries: CanarySet
    layers: tuple[LayerChange, ...]
    unpriced: str
    lm: EditableModel
    topics: tuple[TopicShift, ...] = ()
    tokens: tuple[TokenMove, ...] = ()
    firings: tuple[FactFiring, ...] = ()

    @cached_property
    def canary_tokens(self) -> tuple[NextTokenLogProbs, NextTokenLogProbs] | None:
        """What comes next after every canary prompt, before and after; None without a prompt."""
        before, after = (snapshot.next_tokens(self.canaries.prompts) for snapshot in (self.before, self.after))
        return None if before is None or after is None else (before, after)

    @cached_property
    def canary_shift(self) -> Drift | None:
        """How far the token after each canary prompt moved; None without a prompt. Several checks read it."""
        return None if self.canary_tokens is None else measure_drift(*self.canary_tokens, n_resamples=1)


@dataclass(frozen=True)
class Measurement:
    """What a check found, before its limit is looked at.

    Attributes:
        value: The number; None where it cannot be measured.
        n: What it is a mean or share of.
        words: What it is, or why there is no number.
        interval: 95 % Wilson interval of a share.
        details: What it is made of.
        whole: `words` say the number as well.
    """

    value: float | None
    n: int
    words: str
    interval: tuple[float, float] | None = None
    details: tuple[Mapping[str, Any], ...] = field(default=())
    whole: bool = False


def share_of(hits: int, n: int, words: str, details: Sequence[Mapping[str, Any]] = ()) -> Measurement:
    """The measurement of a share.

    Args:
        hits: How many of them.
        n: Of how many, at least one.
        words: What they are, after their number.
        details: What is shown of them.
    """
    return Measurement(hits / n, n, f"({hits} {words})", wilson_interval(hits, n), tuple(details))
