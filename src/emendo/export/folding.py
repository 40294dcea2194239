"""Fewer rows for the same update: the singular vectors of ΔW that a tolerance does not let go."""

from __future__ import annotations

import torch

from emendo.errors import ExportError
from emendo.update import LayerUpdate


def fold(part: LayerUpdate, tolerance: float) -> tuple[LayerUpdate, float]:
    """The update of smallest rank within a relative distance of the given one.

    With Rᵀ = U T and Qᵀ = V S (QR), ΔW = U (T Sᵀ) Vᵀ, so the singular values of ΔW are those of the small matrix T Sᵀ
    and no dense ΔW is made. Computed in float64.

    Args:
        part: The update, rank n.
        tolerance: Largest ‖ΔW − ΔW'‖_F / ‖ΔW‖_F; 0 keeps every singular value that is not zero to float64 rounding.

    Returns:
        The folded update, without keys, and its relative distance before it is rounded to float32.

    Raises:
        ExportError: The tolerance is not in [0, 1).

    Source: Eckart and Young (1936): the truncated SVD is the nearest matrix of its rank.
    """
    if not 0 <= tolerance < 1:
        raise ExportError(
            f"a folding tolerance of {tolerance:g} makes no sense; expected 0 up to 1, such as --fold 1e-6"
        )
    left, t = torch.linalg.qr(part.residuals.T.double())
    right, s = torch.linalg.qr(part.dual_keys.T.double())
    u, values, v = torch.linalg.svd(t @ s.T, full_matrices=False)
    # tail[k]: norm of what is lost when the first k are kept. Rows that cancel leave noise of their factors' size.
    tail = torch.cat([values.square().flip(0).cumsum(0).flip(0), values.new_zeros(1)]).sqrt()
    noise = len(values) * torch.finfo(values.dtype).eps * t.norm() * s.norm()
    kept = int((tail > torch.maximum(tolerance * tail[0], noise)).sum())
    root = values[:kept].sqrt()
    folded = LayerUpdate(
        layer=part.layer,
        module=part.module,
        residuals=(left @ u[:, :kept] * root).T.float().contiguous(),
        dual_keys=((right @ v[:kept].T) * root).T.float().contiguous(),
    )
    return folded, float(tail[kept] / tail[0]) if tail[0] > noise else 0.0
