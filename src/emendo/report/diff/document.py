"""Everything that differs between two states, as one JSON document that the page and the terminal are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.arguments import checked
from emendo.attribution import Difference, EditSet, PromptDifference, Side, State

LARGEST = 10
"""Edits that are kept for a prompt: those that fire most, and those that contribute most."""


@checked
def document(found: Difference, base: dict[str, str]) -> dict[str, Any]:
    """The document.

    Args:
        found: What differs.
        base: Identity of the model.
    """
    states, sides = (found.first, found.second), ("first", "second")
    return {
        "format": "emendo.diff",
        "version": 1,
        "base": dict(base),
        "order": found.order,
        **{name: _state(states[n], found.edits[n], found.own(n)) for n, name in enumerate(sides)},
        "changed": sum(row.parts_at is not None for row in found.prompts),
        "prompts": [_row(row, found) for row in found.prompts],
    }


def _state(state: State, edits: EditSet | None, own: Sequence[bool]) -> dict[str, Any]:
    listed = () if edits is None else edits.edits
    return {
        "name": state.name,
        "updates": [update.id for update in state.updates],
        "edits": [
            {"label": edit.label, "whole": edit.whole, "only_here": new} for edit, new in zip(listed, own, strict=True)
        ],
    }


def _row(row: PromptDifference, found: Difference) -> dict[str, Any]:
    edited = next((side for side in (0, 1) if found.edits[side] is not None), 0)
    return {
        "prompt": row.prompt,
        "chat": row.chat,
        "number": row.number,
        "next_kl": row.next_kl,
        "continuation_kl": row.continuation_kl,
        "kl": list(row.kl),
        "parts_at": row.parts_at,
        "common": row.common,
        "first": _side(row.first, found.own(0)),
        "second": _side(row.second, found.own(1)),
        "contributions": None
        if row.contributions is None
        else {
            "state": ("first", "second")[edited],
            "token": (row.first, row.second)[edited].tokens[row.parts_at or 0],
            "edits": [{"edit": edit, "nats": value} for edit, value in _largest(row.contributions.tolist())],
        },
    }


def _side(side: Side, own: Sequence[bool]) -> dict[str, Any]:
    fired = [] if side.firing is None else side.firing.tolist()
    return {
        "continuation": side.continuation,
        "tokens": list(side.tokens),
        "top": [{"token": token, "probability": share} for token, share in side.top],
        "firing": [{"edit": edit, "firing": value, "only_here": own[edit]} for edit, value in _largest(fired)],
    }


def _largest(values: Sequence[float]) -> list[tuple[int, float]]:
    """Numbers of the largest values by size, with the values; what is not a number is left out."""
    known = [(number, value) for number, value in enumerate(values) if value == value]
    return sorted(known, key=lambda pair: -abs(pair[1]))[:LARGEST]
