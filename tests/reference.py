"""Naive float64 oracles: the published formulas, written out as the papers print them.

Columns, not rows: keys K [d_in, n], residuals R [d_out, n], Δ added to W [d_out, d_in]. Inverses are
taken explicitly. Nothing here is fast or careful, and nothing imports emendo. The last oracle is exact:
it computes in rational numbers, for matrices too ill-conditioned to trust any float64 oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

Rational = list[list[Fraction]]


def rome_delta(residual: Tensor, averaged_key: Tensor, clean_key: Tensor, moment: Tensor) -> Tensor:
    """Original ROME: Δ = r (C⁻¹ k̄)ᵀ / (k_c ᵀ C⁻¹ k̄). With one key for both it is r-ROME."""
    direction = torch.linalg.inv(moment) @ averaged_key
    return torch.outer(residual, direction) / (clean_key @ direction)


def emmet_delta(
    K: Tensor,
    R: Tensor,
    moment: Tensor,
    *,
    alpha: float = 0.0,
    weight: float = 1.0,
    ridge: float = 0.0,
) -> Tensor:
    """EMMET: Δ = R (Kᵀ C_w⁻¹ K + α I)⁻¹ Kᵀ C_w⁻¹ with C_w = wC + gI."""
    inverse = torch.linalg.inv(weight * moment + ridge * torch.eye(len(moment), dtype=K.dtype))
    gram = K.T @ inverse @ K + alpha * torch.eye(K.shape[1], dtype=K.dtype)
    return R @ torch.linalg.inv(gram) @ K.T @ inverse


def memit_delta(
    K: Tensor,
    R: Tensor,
    moment: Tensor,
    *,
    lam: float,
    ridge: float = 0.0,
    previous: Tensor | None = None,
) -> Tensor:
    """MEMIT: Δ = R Kᵀ (λC + K Kᵀ)⁻¹, with ENCORE's ridge λₙI and sequential MEMIT's K_p K_pᵀ."""
    total = lam * moment + ridge * torch.eye(len(moment), dtype=K.dtype) + K @ K.T
    if previous is not None:
        total = total + previous @ previous.T
    return R @ K.T @ torch.linalg.inv(total)


def alphaedit_delta(
    K: Tensor, R: Tensor, moment: Tensor, *, threshold: float, l2: float, cache: Tensor | None = None
) -> Tensor:
    """AlphaEdit as its code solves it: (P (K Kᵀ + cache) + L2 I) Δᵀ = P K Rᵀ, with P from an SVD of the mean C."""
    U, values, _ = torch.linalg.svd(moment)
    U = U[:, values < threshold]
    P = U @ U.T
    total = K @ K.T if cache is None else K @ K.T + cache
    return torch.linalg.solve(P @ total + l2 * torch.eye(len(moment), dtype=K.dtype), P @ K @ R.T).T


def null_ridge_delta(
    K: Tensor, R: Tensor, moment: Tensor, *, kept: int, s: float, weight: float, ridge: float
) -> Tensor:
    """Least squares in the coordinates K~ = UᵀK of C's `kept` smallest directions: R K~ᵀ (s A_U + K~ K~ᵀ)⁻¹ Uᵀ."""
    U, _, _ = torch.linalg.svd(moment)
    U = U[:, len(moment) - kept :]
    K = U.T @ K
    A_U = U.T @ (weight * moment + ridge * torch.eye(len(moment), dtype=K.dtype)) @ U
    return R @ K.T @ torch.linalg.inv(s * A_U + K @ K.T) @ U.T


def rect_delta(delta: Tensor, weight: Tensor, keep: float) -> Tensor:
    """RECT: entries at or above the (1 - keep) quantile of |Δ / (W + 1e-8)|, the others zero."""
    change = (delta / (weight + 1e-8)).abs()
    return delta * (change >= torch.quantile(change, 1 - keep))


def prune_delta(delta: Tensor, weight0: Tensor, log_base: float) -> Tensor:
    """PRUNE on the total update: U f(S) Vᵀ with f logarithmic above the largest singular value of W₀."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    limit = torch.linalg.svdvals(weight0)[0].item()
    f = [s if s <= limit else math.log(s, log_base) - math.log(limit, log_base) + limit for s in S.tolist()]
    return U @ torch.diag(torch.tensor(f, dtype=delta.dtype)) @ Vh


def memit_gradient(delta: Tensor, K: Tensor, R: Tensor, moment: Tensor, *, lam: float, ridge: float = 0.0) -> Tensor:
    """Half the gradient of λ tr(ΔCΔᵀ) + g ‖Δ‖² + ‖ΔK − R‖² in Δ; zero at MEMIT's update."""
    return lam * delta @ moment + ridge * delta + (delta @ K - R) @ K.T


def preservation_cost(delta: Tensor, moment: Tensor) -> float:
    """tr(Δ C Δᵀ)."""
    return torch.trace(delta @ moment @ delta.T).item()


def exact_dual_keys(keys: Tensor, metric: Tensor, s: float) -> Tensor:
    """Q [n, d_in] of row-wise keys K [n, d_in], in exact arithmetic and rounded once at the end.

    Least squares as Q = K (KᵀK + sA)⁻¹, equality as Q = (K A⁻¹ Kᵀ)⁻¹ K A⁻¹. Meant for d_in ≤ 8.
    """
    K, A = _rational(keys), _rational(metric)
    if s > 0:
        KtK = _times(_transposed(K), K)
        system = [[ktk + Fraction(s) * a for ktk, a in zip(*rows, strict=True)] for rows in zip(KtK, A, strict=True)]
        # The system is symmetric: its solution for Kᵀ is Qᵀ.
        return _rounded(_transposed(_solved(system, _transposed(K))))
    projected = _solved(A, _transposed(K))
    return _rounded(_solved(_times(K, projected), _transposed(projected)))


def moment_with_condition(d_in: int, condition: float, seed: int) -> Tensor:
    """A symmetric matrix whose eigenvalues run from 1/√condition to √condition, log-evenly."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(d_in, d_in, dtype=torch.float64, generator=generator)
    basis, _ = torch.linalg.qr(square)
    steps = torch.linspace(-0.5, 0.5, d_in, dtype=torch.float64)
    moment = (basis * condition**steps) @ basis.T
    return (moment + moment.T) / 2


def _rational(matrix: Tensor) -> Rational:
    return [[Fraction(value) for value in row] for row in matrix.double().tolist()]


def _rounded(matrix: Rational) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)


def _transposed(matrix: Rational) -> Rational:
    return [list(column) for column in zip(*matrix, strict=True)]


def _times(left: Rational, right: Rational) -> Rational:
    columns = _transposed(right)
    return [[_dot(row, column) for column in columns] for row in left]


def _dot(left: Sequence[Fraction], right: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(left, right, strict=True)), Fraction(0))


def _solved(matrix: Rational, right: Rational) -> Rational:
    """Gauss-Jordan elimination; any pivot but zero is as good as another in exact arithmetic."""
    size = len(matrix)
    rows = [list(left) + list(values) for left, values in zip(matrix, right, strict=True)]
    for i in range(size):
        pivot = next(j for j in range(i, size) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(size):
            if j != i and rows[j][i]:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[size:] for row in rows]
