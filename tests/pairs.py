"""Lists of test parameters, of whose products the quick tests take a part; the others are slow tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairs(first: Sequence[Any], second: Sequence[Any], apart: Collection[Any] = ()) -> list[Any]:
    """Every pair as a pytest parameter; those that bring no value of either list for the first time are slow.

    Args:
        first: Values of one parameter.
        second: Of the other.
        apart: Values that are in slow pairs alone, such as `kinds.ALIKE`.
    """
    one, other = ([value for value in values if value not in apart] for values in (first, second))
    kept = {(one[index % len(one)], other[index % len(other)]) for index in range(max(len(one), len(other)))}
    return [pytest.param(*pair, marks=() if pair in kept else pytest.mark.slow) for pair in product(first, second)]


def covering(*lists: Sequence[Any]) -> list[Any]:
    """Every combination as a pytest parameter; those that bring no pair of values for the first time are slow."""
    places = list(combinations(range(len(lists)), 2))
    every = list(product(*map(range, map(len, lists))))

    def pairs_of(chosen: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(one, chosen[one], other, chosen[other]) for one, other in places}

    missing, kept = set().union(*map(pairs_of, every)), set()
    while missing:
        best = max(every, key=lambda chosen: len(pairs_of(chosen) & missing))
        missing -= pairs_of(best)
        kept.add(best)
    return [
        pytest.param(
            *(values[index] for values, index in zip(lists, chosen, strict=True)),
            marks=() if chosen in kept else pytest.mark.slow,
        )
        for chosen in every
    ]
