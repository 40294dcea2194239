"""Dual keys of any edit of a sequence under any part of its history, through Gram matrices alone.

Let B = f(C)⁻¹ (with a null space U A_U⁻¹ Uᵀ), P the keys of the edits that count as history with weight w, and K those
of an edit. By Woodbury's identity ``A⁻¹ = (f(C) + w PᵀP)⁻¹ = B − B Pᵀ (I/w + P B Pᵀ)⁻¹ P B``, so that

    D = K A⁻¹ Kᵀ + s I = K B Kᵀ + s I − Vᵀ V,        L V = P B Kᵀ,   L Lᵀ = I/w + P B Pᵀ
    Q = D⁻¹ (K B − Vᵀ L⁻¹ P B)

One pass of triangular solves gives Y = K B for all edits of a layer; whatever is left has the order of the number of
edits. Taking an edit out of the history is leaving its rows out: A itself is never factorised again. L of a longer
history begins with that of a shorter one, so that one factorisation serves every edit of a sequence.

Source: Woodbury's identity as in Golub and Van Loan, "Matrix Computations", 4th ed., section 2.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import InfeasibleError, NumericalError
from emendo.shapes import DualKeys, Keys
from emendo.solve import PreparedLayer

_LOST = 1e-11
"""Part of a key's own K B Kᵀ below which what the history leaves of it is rounding."""

_REFINEMENTS = 2


class LayerGram:
    """All keys of one layer in the metric without history.

    Args:
        metric: f(C), factorised; without history.
        keys: Keys of all edits of the layer, stacked in the order in which they were written.
    """

    def __init__(self, metric: PreparedLayer, keys: Keys) -> None:
        whitened = metric.whiten(keys)
        self.keys: Keys = keys.double().cpu()
        self.duals: DualKeys = metric.unwhiten(whitened).cpu()
        self.gram: Float[Tensor, "n n"] = (whitened @ whitened.T).cpu()

    def without(self, rows: Sequence[int]) -> LayerGram:
        """The same layer with some rows left out: they are neither history nor edits any more."""
        kept = torch.ones(len(self.keys), dtype=torch.bool, device="cpu")
        kept[list(rows)] = False
        rest = LayerGram.__new__(LayerGram)
        rest.keys, rest.duals, rest.gram = self.keys[kept], self.duals[kept], self.gram[kept][:, kept]
        return rest


class History:
    """One layer's edits, each preserved by the ones after it with one weight.

    Args:
        layer: Keys in their order.
        weight: w, what each key counts for the edits after it; 0 for nothing.
    """

    def __init__(self, layer: LayerGram, weight: float) -> None:
        self._layer, self._weight = layer, weight
        self._factor = torch.zeros(0, 0, dtype=torch.float64, device="cpu")
        if weight > 0 and len(layer.keys):
            shifted = layer.gram.clone()
            shifted.diagonal().add_(1.0 / weight)
            self._factor, info = torch.linalg.cholesky_ex(shifted)
            if info.item():
                raise NumericalError(
                    f"history.weight={weight:g} is lost in rounding beside the keys' own K A⁻¹ Kᵀ of up to "
                    f"{float(layer.gram.diagonal().max()):.1e}; expected a positive definite system. Take the edit "
                    "out by replay"
                )

    def system(self, start: int, n: int, s: float) -> Float[Tensor, "n n"]:
        """D = K A⁻¹ Kᵀ + s I of the edit in rows ``start`` to ``start + n``."""
        return self._reduced(start, n, s)[0]

    def dual_keys(self, start: int, n: int, s: float) -> DualKeys:
        """Q of the edit in rows ``start`` to ``start + n``, float64.

        Raises:
            InfeasibleError: Its keys are dependent and s = 0.
        """
        system, directions = self._reduced(start, n, s)
        if n == 0:
            return directions
        own = slice(start, start + n)
        factor, info = torch.linalg.cholesky_ex(system)
        least = factor.diagonal().square() / self._layer.gram.diagonal()[own].clamp_min(torch.finfo(torch.float64).tiny)
        if info.item() or not bool((least > _LOST).all()):
            raise InfeasibleError(
                f"the stored keys of an edit are dependent on each other up to rounding (s = {s:g}), so that its dual "
                "keys cannot be found again; expected independent keys. Take the edit out by replay"
            )
        inverse = torch.cholesky_inverse(factor)
        dual_keys = inverse @ directions
        # Newton's steps on Q Kᵀ + s D⁻¹ = I, as the solver takes them: each squares what the metric's condition left.
        keys, eye = self._layer.keys[own], torch.eye(n, dtype=torch.float64, device="cpu")
        for _ in range(_REFINEMENTS):
            gap = eye - dual_keys @ keys.T - s * inverse
            dual_keys, inverse = dual_keys + gap @ dual_keys, inverse + gap @ inverse
        return dual_keys

    def _reduced(self, start: int, n: int, s: float) -> tuple[Float[Tensor, "n n"], DualKeys]:
        """D, and K A⁻¹."""
        layer, own = self._layer, slice(start, start + n)
        system, directions = layer.gram[own, own].clone(), layer.duals[own]
        if self._weight > 0 and start:
            factor = self._factor[:start, :start]
            crossed = torch.linalg.solve_triangular(factor, layer.gram[:start, own], upper=False)
            system -= crossed.T @ crossed
            weights = torch.linalg.solve_triangular(factor.T, crossed, upper=True)
            directions = directions - weights.T @ layer.duals[:start]
        system.diagonal().add_(s)
        return system, directions
