"""The directions that an update may use: eigenvectors of C in which the preserved keys hardly vary.

With U [d_in, r] those eigenvectors, preservation is +∞ outside the span of U and
``A_U = Uᵀ (weight · C + ridge · I + H) U`` inside it, so that A⁻¹ becomes ``U A_U⁻¹ Uᵀ``. In U's
coordinates the part without H is diagonal.

The eigendecomposition takes 12 to 16 times as long as the Cholesky factorisation of the plain metric
(0.1 s at d_in = 768, 1.1 s at 1536, one CPU core) and grows with d_in³; the basis takes d_in · r float64
numbers (1.6 GB at d_in = 14336). Both depend on C and the threshold alone: make them once a layer, and
keep them while the history grows (`PreparedLayer.with_history`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import check_width, checked
from emendo.errors import InfeasibleError
from emendo.shapes import Keys, Moment
from emendo.solve.preservation import check_history, check_moment
from emendo.solve.settings import Preservation


@dataclass(frozen=True, eq=False)
class NullSpace:
    """An orthonormal basis of what is kept. Made by `find_null_space`.

    Attributes:
        basis: U, float64.
        eigenvalues: uᵀ C u of its columns, ascending, float64.
        largest: The largest eigenvalue of C, which sets the rounding of all of them.
    """

    basis: Float[Tensor, "d_in r"]
    eigenvalues: Float[Tensor, " r"]
    largest: float

    @checked
    def reduce(self, keys: Keys) -> Float[Tensor, "n r"]:
        """K U: the keys' coordinates in the kept directions."""
        check_width("keys", keys, self.basis.shape[0])
        return keys.to(self.basis) @ self.basis

    @checked
    def lift(self, reduced: Float[Tensor, "n r"]) -> Keys:
        """Z Uᵀ: back to all coordinates."""
        check_width("reduced", reduced, self.basis.shape[1])
        return reduced.to(self.basis) @ self.basis.T

    @checked(sizes=False)
    def metric(self, preservation: Preservation, moment: Moment, history: Moment | None) -> Float[Tensor, "r r"]:
        """A_U = weight · diag(eigenvalues) + ridge · I + Uᵀ H U, a new float64 matrix.

        Raises:
            InputError: The history is not a finite symmetric matrix of the moment's size.
        """
        diagonal = self.eigenvalues * preservation.weight + preservation.ridge
        if history is None:
            return diagonal.diag()
        check_history(history, moment)
        metric = self.basis.T @ (history.detach().to(self.basis) @ self.basis)
        metric.diagonal().add_(diagonal)
        return metric

    @checked
    def rounding(self, preservation: Preservation) -> float:
        """How large an entry of A_U may be though exactly it is zero: what rounding leaves of C's largest."""
        noise = len(self.basis) * torch.finfo(torch.float64).eps
        return noise * preservation.weight * self.largest


@torch.no_grad()
def find_null_space(moment: Moment, preservation: Preservation) -> NullSpace | None:
    """The directions that `preservation` leaves open.

    Args:
        moment: C, the mean second moment.
        preservation: Its `null_space` and `threshold` choose the directions.

    Returns:
        The basis; None where all directions are open, by choice or because nothing lies above the threshold.

    Raises:
        MomentsError: The moment is not a finite symmetric matrix.
        InfeasibleError: No direction is open; it says which threshold would open half of them.

    Source: AlphaEdit (arXiv 2410.02355), as its public code does it: eigenvalues of the mean below 2e-2.
    """
    if preservation.null_space == "off":
        return None
    check_moment(moment)
    eigenvalues, vectors = torch.linalg.eigh(moment.detach().to(torch.float64))
    measure = eigenvalues
    if preservation.null_space == "energy":
        held = eigenvalues.clamp(min=0.0).cumsum(0)  # rounding makes zeros slightly negative
        measure = held / held[-1] if held[-1] > 0 else torch.zeros_like(held)
        kept = int((measure <= preservation.threshold).sum().item())
    else:
        kept = int((measure < preservation.threshold).sum().item())
    if kept == len(eigenvalues):
        return None
    if kept == 0:
        raise _nothing_kept(measure, preservation)
    # A copy of the kept columns only, so that the others are freed.
    basis = vectors[:, :kept].clone(memory_format=torch.contiguous_format)
    return NullSpace(basis, eigenvalues[:kept].clone(), float(eigenvalues[-1].item()))


def _nothing_kept(measure: Float[Tensor, " d_in"], preservation: Preservation) -> InfeasibleError:
    least, d_in = measure[0].item(), len(measure)
    half = 1.06 * measure[(d_in - 1) // 2].item()  # above, so that its first two digits do not fall below
    if preservation.null_space == "energy":
        half = min(half, 1.0)
        found = f"the direction in which the preserved keys vary least holds a share of {least:.1e} of trace(C)"
        other = ""
    else:
        found = f"the smallest eigenvalue of the mean second moment is {least:.1e}"
        share = min(1.06 * float(measure[: (d_in + 1) // 2].sum() / measure.sum()), 1.0)
        other = (
            ", or choose by share, which fits any model: `--set preservation.null_space=energy "
            f"--set preservation.threshold={share:.2g}`"
        )
    return InfeasibleError(
        f"preservation.null_space={preservation.null_space} leaves no direction for an update: {found}, and "
        f"preservation.threshold is {preservation.threshold:g}. Raise it (half of the {d_in} dimensions are below "
        f"`--set preservation.threshold={half:.2g}`){other}."
    )
