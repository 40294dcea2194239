"""The keys of earlier edits in a factorised metric, without factorising it again.

With A = L Lᵀ and earlier keys P, whitened to Z = P L⁻ᵀ with the singular value decomposition Z = U S Vᵀ,

    A + w PᵀP = L (I + w Zᵀ Z) Lᵀ,      (I + w ZᵀZ)^(-1/2) = I − V diag(1 − (1 + w S²)^(-1/2)) Vᵀ

so that a key is whitened by L and then damped along a few directions. This is Woodbury's identity in the symmetric form
that `PreparedLayer.whiten` and `unwhiten` need.

Source: M. A. Woodbury, Inverting modified matrices (1950), for the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.shapes import Keys


@dataclass(frozen=True, eq=False)
class Remembered:
    """Earlier keys in a metric.

    Attributes:
        keys: P, ``[m, d_in]``, float64.
        whitened: Z, ``[m, r]``.
        weight: w, what each key counts.
        directions: V, ``[r, m]``.
        damping: 1 − (1 + w S²)^(-1/2) of each direction.
    """

    keys: Keys
    whitened: Float[Tensor, "m r"]
    weight: float
    directions: Float[Tensor, "r m"]
    damping: Float[Tensor, " m"]

    @classmethod
    @torch.no_grad()
    def of(cls, keys: Keys, whitened: Float[Tensor, "m r"], weight: float) -> Remembered:
        """Keys that count `weight` each.

        Args:
            keys: P.
            whitened: The same keys, whitened by the metric without them.
            weight: w, more than 0.
        """
        basis, triangle = torch.linalg.qr(whitened.T)
        left, singular, _ = torch.linalg.svd(triangle, full_matrices=False)
        return cls(keys, whitened, weight, basis @ left, 1.0 - (1.0 + weight * singular.square()).rsqrt())

    def damped(self, whitened: Float[Tensor, "n r"]) -> Float[Tensor, "n r"]:
        """Rows times (I + w Zᵀ Z)^(-1/2)."""
        return whitened - ((whitened @ self.directions) * self.damping) @ self.directions.T
