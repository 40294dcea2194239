"""What a sequence of edits keeps: pure functions of whether each edit held right after its own write and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emendo.arguments import Confidence, checked
from emendo.errors import InputError
from emendo.evaluate.bootstrap import Interval
from emendo.evaluate.proportion import wilson_interval


@dataclass(frozen=True)
class Share:
    """A share of edits with its Wilson interval.

    Attributes:
        value: successes / n; None where n is 0.
        successes: Edits that count.
        n: Edits that could.
        interval: 95 % unless asked otherwise; None where n is 0.
    """

    value: float | None
    successes: int
    n: int
    interval: Interval | None

    @classmethod
    @checked
    def of(cls, hits: Sequence[bool], confidence: Confidence = 0.95) -> Share:
        """The share of true entries."""
        successes, n = sum(map(bool, hits)), len(hits)
        return cls(successes / n if n else None, successes, n, wilson_interval(successes, n, confidence=confidence))


@dataclass(frozen=True)
class Retention:
    """How edits of one sequence fare; "right" is whatever test gave the hits, the same one at both times.

    Attributes:
        immediate: Right straight after their own write.
        final: Right after the last write.
        forgetting: Wrong at the end, of those right at once.
        late: Right at the end, of those wrong at once: other edits made them so.
        first: Right at the end, of the first k edits, by k.
    """

    immediate: Share
    final: Share
    forgetting: Share
    late: Share
    first: dict[int, Share]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {name: vars(getattr(self, name)) for name in ("immediate", "final", "forgetting", "late")}
        return {**named, "first": {str(k): vars(share) for k, share in self.first.items()}}


@checked
def retention(
    immediate: Sequence[bool], final: Sequence[bool], *, first: Sequence[int] = (), confidence: Confidence = 0.95
) -> Retention:
    """Compare what held right after each edit with what holds at the end.

        forgetting = #{i : immediate_i and not final_i} / #{i : immediate_i}

    Args:
        immediate: For each edit in the order written: right straight after its own write.
        final: The same edits, right after the last write.
        first: Sizes k of first-k retention; one larger than the sequence is an error.
        confidence: Of the Wilson intervals.

    Raises:
        InputError: The lengths differ, there is no edit, or a k is out of range.

    Source: Gupta et al. 2024 (arXiv 2401.07453), gradual forgetting of sequential edits.
    """
    if len(immediate) != len(final) or not immediate:
        raise InputError(
            f"retention needs each edit's hit at both times, found {len(immediate)} immediate and {len(final)} final"
        )
    if bad := [k for k in first if not 1 <= k <= len(final)]:
        raise InputError(f"first-k retention needs k between 1 and {len(final)}, found {bad} (first=)")
    pairs = list(zip(immediate, final, strict=True))
    return Retention(
        immediate=Share.of(immediate, confidence),
        final=Share.of(final, confidence),
        forgetting=Share.of([not then for now, then in pairs if now], confidence),
        late=Share.of([then for now, then in pairs if not now], confidence),
        first={k: Share.of(final[:k], confidence) for k in first},
    )
