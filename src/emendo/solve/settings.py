"""What an update must leave alone, as data: the settings of the preservation metric A = f(C) + H."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from emendo.errors import InputError

NullSpaceRule: TypeAlias = Literal["off", "absolute", "energy"]
"""Which directions an update may use at all: every one, or those in which preserved keys hardly vary."""


@dataclass(frozen=True)
class Preservation:
    """f(C) = weight · C + ridge · I, and +∞ on C's eigenvectors outside the null space.

    MEMIT's λ (``mom2_update_weight``) is ``weight`` where the memorization strength s is 1;
    ENCORE's norm constraint λₙ is ``ridge``; ``weight=0, ridge=1`` replaces C by the identity;
    ``weight=0, ridge=10, null_space="absolute"`` at s = 1 is AlphaEdit.

    Attributes:
        weight: How much the preserved keys count. It multiplies the mean moment E[k kᵀ], never a
            sum over tokens.
        ridge: How much the squared Frobenius norm of the update counts.
        null_space: ``"absolute"`` lets the update use only eigenvectors of the mean moment C whose
            eigenvalue is below `threshold`; ``"energy"`` only the largest set of smallest-eigenvalue
            directions that together hold at most the share `threshold` of trace(C), which means the
            same on every model; ``"off"`` all of them.
        threshold: See `null_space`. AlphaEdit's code has 2e-2 (absolute), its paper's footnote 1e-2.
        dead_ridge: A ridge that is added only where weight · C + ridge · I is singular, as where units of a ReLU never
            fire on preserved text, relative to the mean diagonal of weight · C. 0 refuses such a C.

    Raises:
        InputError: A value is out of range, or weight and ridge are both zero.

    Source: MEMIT (arXiv 2210.07229) eq. 14 and 15 for the weight, ENCORE (arXiv 2502.01636) for the
        ridge, AlphaEdit (arXiv 2410.02355) for the null space and the absolute threshold.
    """

    weight: float = 1.0
    ridge: float = 0.0
    null_space: NullSpaceRule = "off"
    threshold: float = 0.02
    dead_ridge: float = 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "ridge", "dead_ridge"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise InputError(
                    f"preservation.{name} is {value}; expected a finite number of at least 0. "
                    f"Set it with `--set preservation.{name}=1.0`."
                )
        if self.null_space not in ("off", "absolute", "energy"):
            raise InputError(f"preservation.null_space is {self.null_space!r}; expected 'off', 'absolute' or 'energy'.")
        most = 1.0 if self.null_space == "energy" else math.inf
        if not (math.isfinite(self.threshold) and 0.0 < self.threshold <= most):
            expected = "a share above 0 and at most 1" if self.null_space == "energy" else "a finite number above 0"
            raise InputError(
                f"preservation.threshold is {self.threshold}; expected {expected}. "
                "Set it with `--set preservation.threshold=0.02`."
            )
        if self.weight == 0.0 and self.ridge == 0.0:
            where = "" if self.null_space == "off" else " inside the null space"
            raise InputError(
                f"preservation.weight and preservation.ridge are both 0, so nothing would be preserved{where}. "
                "Set one of them, e.g. `--set preservation.weight=1.0` or `--set preservation.ridge=10`."
            )
