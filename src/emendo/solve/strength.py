"""λ that fits any model: how much preserved keys may count for an edit still to be written.

Least squares at s with A = v · f(C) alone, f at unit scale, gives a key k the share

    k ΔWᵀ / r = g / (g + s v)        g = k f(C)⁻¹ kᵀ

of its residual r, where it is written by itself: its leverage g decides, and g depends on how wide the layer is, how
its keys are scaled and how rare the subject is. So a λ that was published for one model says nothing on another; a
share means the same on every one. The scale is the largest power of four at which the mean share over keys and layers
is at least what is asked: up to a factor of four smaller than it could be, so that rounding, another processor or a few
other facts seldom change it, and edits in sequence have one λ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Measured, checked
from emendo.errors import InputError

_MOST = 60
"""Of the exponents that are tried: 4^60 is far outside what C of any model comes to."""


@checked
def mean_share(leverages: Iterable[Float[Tensor, " n"]], s: Measured, scale: Measured) -> float:
    """The share of a residual that a key receives where it is written alone, in the mean.

    Args:
        leverages: k f(C)⁻¹ kᵀ of every key at unit scale, by layer.
        s: Memorization strength, above 0.
        scale: What f(C) is multiplied by.
    """
    found = torch.cat([one.double() for one in leverages])
    return float((found / (found + s * scale)).mean())


@checked
def fitting_scale(leverages: Iterable[Float[Tensor, " n"]], s: Measured, share: Measured) -> float:
    """The largest power of four by which f(C) may be multiplied for a share of the residuals to be written.

    Args:
        leverages: k f(C)⁻¹ kᵀ of every key at unit scale, by layer.
        s: Memorization strength, above 0.
        share: Mean share that is asked, between 0 and 1.

    Raises:
        InputError: No scale reaches it, as where keys are zero.
    """
    found = list(leverages)
    for exponent in range(_MOST, -_MOST - 1, -1):
        if mean_share(found, s, 4.0**exponent) >= share:
            return 4.0**exponent
    least = min(float(one.min()) for one in found if len(one))
    raise InputError(
        f"no λ writes {share:g} of the residuals in the mean: the smallest leverage k f(C)⁻¹ kᵀ is {least:g}, as of a "
        "key that is zero. Give λ (--set preservation.weight=VALUE), or memorize with equality (--set memorization.s=0)"
    )


def is_multiple(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two pairs of weight and ridge are the same but for their scale.

    Args:
        one: Weight and ridge.
        other: Weight and ridge.
    """
    return math.isclose(one[0] * other[1], one[1] * other[0], rel_tol=1e-9)
