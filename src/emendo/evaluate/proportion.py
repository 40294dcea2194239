"""Confidence interval of a share."""

from __future__ import annotations

import math
from statistics import NormalDist

from emendo.arguments import Confidence, checked
from emendo.errors import InputError
from emendo.evaluate.bootstrap import Interval


@checked
def wilson_interval(successes: int, n: int, *, confidence: Confidence = 0.95) -> Interval | None:
    """Wilson score interval of a share; it says something also where every one of n trials went the same way.

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)        p = successes / n, z the normal quantile

    Args:
        successes: Between 0 and n.
        n: Independent trials.
        confidence: Two-sided.

    Returns:
        Lower and upper end in [0, 1]; None without a trial.

    Raises:
        InputError: An argument is out of range.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if not 0 <= successes <= n:
        raise InputError(f"a share needs 0 <= successes <= n, found {successes} of {n}")
    if n == 0:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    # The ends are exactly 0 and 1 in the extreme cases; rounding must not say otherwise.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high
