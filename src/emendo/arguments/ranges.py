"""Ranges of arguments as annotations: ``Annotated[int, Between(1, 10)]``, and names for the usual ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias


@dataclass(frozen=True)
class Between:
    """Range of a number, its ends included.

    Attributes:
        least: Smallest value.
        most: Largest value.
        open: Whether the ends themselves are left out.
    """

    least: float
    most: float
    open: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a number is in it."""
        return bool(self.least < value < self.most if self.open else self.least <= value <= self.most)

    def __str__(self) -> str:
        ends = "" if not self.open else ", both left out"
        if self.most in (math.inf, MOST):
            return f"above {self.least:g}" if self.open else f"of at least {self.least:g}"
        return f"from {self.least:,g} to {self.most:,g}{ends}"


MOST = 2**63 - 1
"""Largest whole number that torch and NumPy take."""

Count: TypeAlias = Annotated[int, Between(1, MOST)]
"""How many of something there are; at least one."""

Size: TypeAlias = Annotated[int, Between(0, MOST)]
"""How many of something there are; may be none."""

Seed: TypeAlias = Annotated[int, Between(0, MOST)]
"""Of a generator of random numbers."""

TokenId: TypeAlias = Annotated[int, Between(0, 2**31 - 1)]
"""Of a tokenizer."""

Resamples: TypeAlias = Annotated[int, Between(1, 1_000_000)]
"""Resamples of a bootstrap; more take minutes and change no digit that is shown."""

Confidence: TypeAlias = Annotated[float, Between(0, 1, open=True)]
"""Share of resampled values inside an interval."""

Share: TypeAlias = Annotated[float, Between(0, 1)]
"""Part of a whole."""

Positive: TypeAlias = Annotated[float, Between(0, math.inf, open=True)]
"""A finite number above 0."""

NotNegative: TypeAlias = Annotated[float, Between(0, math.inf)]
"""A finite number of at least 0."""


class Anything:
    """Any value of the type; the function judges it, and knows better words."""


Measured: TypeAlias = Annotated[float, Anything()]
"""A number that was computed, and may not be finite."""
