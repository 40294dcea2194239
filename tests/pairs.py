"""Two lists of test parameters, each value of one with a value of the other: all pairs are a slow test."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def pairs(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Every pair as a pytest parameter; those that bring no value of either list for the first time are slow."""
    kept = {(first[index % len(first)], second[index % len(second)]) for index in range(max(len(first), len(second)))}
    return [
        pytest.param(one, other, marks=() if (one, other) in kept else pytest.mark.slow)
        for one, other in product(first, second)
    ]
