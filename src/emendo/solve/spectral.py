"""The largest singular value of a weight matrix, to a known accuracy, without its whole spectrum."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SPECTRAL_TOLERANCE = 1e-8
"""Relative error allowed in a spectral norm. PRUNE's f is continuous in it with slope at most 1 + 1/s_max, so
this moves no singular value by more than its eighth digit, which float32 weights do not hold."""


@torch.no_grad()
def spectral_norm(matrix: Float[Tensor, "rows columns"], tolerance: float = SPECTRAL_TOLERANCE) -> float:
    """‖M‖₂ by Lanczos iteration on M Mᵀ (or MᵀM, whichever is smaller), in float64.

    Every step costs 4 · rows · columns operations; a few dozen steps suffice for weight matrices, where all
    singular values of a 4096×14336 matrix would take 10¹² operations. It stops where the residual bounds
    the relative distance to a singular value by `tolerance`; the result is never too large beyond
    rounding. The starting vector is fixed: the result repeats, and no global random state is touched.

    Args:
        matrix: M, finite.
        tolerance: Relative error.

    Returns:
        The norm.

    Source: Golub and Van Loan, "Matrix Computations", 4th ed., section 10.1 (with full reorthogonalisation).
    """
    matrix = matrix.detach().to(torch.float64)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    size = matrix.shape[0]
    seeded = torch.Generator().manual_seed(0)
    start = torch.randn(size, dtype=torch.float64, device="cpu", generator=seeded).to(matrix.device)
    basis, off_diagonal = (start / start.norm())[None], 0.0
    tridiagonal = matrix.new_zeros(0, 0)
    largest = 0.0
    for step in range(size):
        image = matrix @ (matrix.T @ basis[-1])
        tridiagonal = torch.nn.functional.pad(tridiagonal, (0, 1, 0, 1))
        tridiagonal[step, step] = image @ basis[-1]
        if step:
            tridiagonal[step, step - 1] = tridiagonal[step - 1, step] = off_diagonal
        for _ in range(2):  # once leaves a residue where the image lies nearly in the span
            image = image - basis.T @ (basis @ image)
        off_diagonal = float(image.norm().item())
        values, vectors = torch.linalg.eigh(tridiagonal)
        largest = max(float(values[-1].item()), 0.0)
        # |θ − λ| ≤ residual for some eigenvalue λ = σ², and half of that, relatively, for σ.
        residual = off_diagonal * abs(float(vectors[-1, -1].item()))
        if residual <= 2.0 * tolerance * largest:
            break
        basis = torch.cat([basis, image[None] / off_diagonal])
    return float(largest**0.5)
