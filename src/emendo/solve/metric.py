"""The preservation metric of one layer, factorised once and reused by every batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import InfeasibleError
from emendo.shapes import Keys, Moment
from emendo.solve.conditioning import inverse_norm, one_norm
from emendo.solve.preservation import Preservation


@dataclass(frozen=True, eq=False)
class PreparedLayer:
    """A = f(C) + H with its Cholesky factor: A = L Lᵀ. Made by `prepare`.

    A itself is not kept: only the primal form needs it, and `metric` rebuilds it in O(d_in²).

    Attributes:
        moment: C, kept as it was given.
        preservation: f.
        history: H, or None.
        cholesky: L, lower triangular, float64.
        condition: Estimate of the condition number ‖A‖₁ ‖A⁻¹‖₁ (a lower bound, nearly always
            within a factor of 3; between κ₂ and d_in · κ₂).
    """

    moment: Moment
    preservation: Preservation
    history: Moment | None
    cholesky: Float[Tensor, "d_in d_in"]
    condition: float

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return self.cholesky.shape[0]

    def metric(self) -> Moment:
        """A, rebuilt in float64."""
        return self.preservation.metric(self.moment, self.history)

    def whiten(self, keys: Keys) -> Keys:
        """Z = K L⁻ᵀ, so that Z Zᵀ = K A⁻¹ Kᵀ."""
        # On the transpose: row-major K is column-major Kᵀ, which LAPACK takes without a copy.
        right: Tensor = self._like(keys).T
        left: Tensor = torch.linalg.solve_triangular(self.cholesky, right, upper=False)
        return left.T

    def unwhiten(self, whitened: Keys) -> Keys:
        """Z L⁻¹, so that ``unwhiten(whiten(K)) = K A⁻¹``."""
        left: Tensor = torch.linalg.solve_triangular(self.cholesky.T, whitened.T, upper=True)
        return left.T

    def leverage(self, keys: Keys) -> Float[Tensor, " n"]:
        """Leverage k A⁻¹ kᵀ of every key: one over the least price of a unit change there.

        Memorizing a residual r at k alone costs ‖r‖² / (k A⁻¹ kᵀ), so the cheapest way to share a
        request out over layers is in proportion to its leverage at each.
        """
        return self.whiten(keys).square().sum(dim=1)

    def _like(self, keys: Keys) -> Keys:
        return keys.detach().to(self.cholesky)


@torch.no_grad()
def prepare(moment: Moment, preservation: Preservation, *, history: Moment | None = None) -> PreparedLayer:
    """Factorise a layer's preservation metric, d_in³/3 operations, in float64.

    Args:
        moment: C, the mean second moment of the layer's keys. Its device is where all solves run.
        preservation: f.
        history: H from earlier edits, see `extend_history`.

    Returns:
        The factorised metric, to be passed to `solve` for every batch of the layer.

    Raises:
        MomentsError: The moment is not a finite symmetric matrix.
        InfeasibleError: The metric is not positive definite beyond rounding, as when C was
            collected on fewer tokens than d_in. No jitter is added, no pseudo-inverse taken.
    """
    metric = preservation.metric(moment, history)
    norm, diagonal = one_norm(metric), metric.diagonal().clone()
    cholesky, info = torch.linalg.cholesky_ex(metric)
    del metric
    d_in = diagonal.shape[0]
    # A pivot relative to its diagonal entry is the part of that coordinate which the ones before it
    # do not explain. Rounding leaves up to about d_in · eps of it where exactly nothing is left.
    pivots = cholesky.diagonal().square() / diagonal
    noise = d_in * torch.finfo(torch.float64).eps
    lost = ~(pivots > noise)  # NaN is lost too
    if info.item() or bool(lost.any()):
        failed = int(info.item()) or int(lost.int().argmax().item()) + 1
        raise _not_positive_definite(diagonal, failed, preservation, moment.dtype)
    condition = norm * inverse_norm(lambda x: torch.cholesky_solve(x[:, None], cholesky)[:, 0], d_in, like=cholesky)
    return PreparedLayer(moment, preservation, history, cholesky, condition)


def _not_positive_definite(
    diagonal: Float[Tensor, " d_in"], failed: int, preservation: Preservation, dtype: torch.dtype
) -> InfeasibleError:
    """Say where the factorisation stopped, what that looks like, and what helps."""
    d_in = diagonal.shape[0]
    silent = int((diagonal <= 0).sum())
    what = (
        f"{silent} of its {d_in} coordinates have no positive diagonal entry"
        if silent
        else f"coordinate {failed} of {d_in} is a combination of the ones before it"
    )
    ridge = max(1e-4 * diagonal.abs().mean().item(), 1e-12)
    # A real hazard: massive activations spread the eigenvalues of C over ten orders of magnitude.
    precision = (
        ""
        if dtype == torch.float64
        else f" So does one in {dtype} whose eigenvalues lie more than {1 / torch.finfo(dtype).eps:.0e} "
        "apart: sum and store it in float64."
    )
    return InfeasibleError(
        f"The preservation metric A = {preservation.weight:g}*C + {preservation.ridge:g}*I (+ history) is not "
        f"positive definite: {what}, up to float64 rounding. A second moment of fewer than d_in = {d_in} independent "
        f"tokens looks like this.{precision} Collect more tokens, e.g. `emendo moments collect --tokens {10 * d_in}`, "
        f"or add a ridge, e.g. `--set preservation.ridge={ridge:.0e}`."
    )
