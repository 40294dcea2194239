"""Post-steps: what may be done to an update once it is solved, on one layer's factors ΔW = RᵀQ.

Each takes an update in and gives one out, as factors (residuals [n, d_out], dual keys [n, d_in]). None of
them knows what the update was for, so each may weaken edits that were exact: `retained` measures
how much of each edit an update still gives.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Measured, checked
from emendo.errors import InputError
from emendo.shapes import DualKeys, Keys, Residuals, Weight
from emendo.solve.costs import frobenius_norm
from emendo.solve.spectral import spectral_norm

Factors = tuple[Residuals, DualKeys]

_OFFSET = 1e-8  # RECT's, beside the weight in the denominator


@checked(sizes=False)
@torch.no_grad()
def rect(delta: Weight, weight: Weight, keep: Measured = 0.4) -> Factors:
    """RECT: keep the entries that change their weight the most, relatively, and leave the others as they were.

    An entry counts by |Δ / (W + 1e-8)|; those at or above the (1 − keep) quantile are kept, ties with it
    included. The result has full rank, so its factors are the identity and the matrix itself: exact, and no
    smaller than it.

    Args:
        delta: ΔW, dense.
        weight: The weights that ΔW is to be added to.
        keep: Share of entries to keep, above 0 and at most 1.

    Returns:
        Residuals I [d_out, d_out] and dual keys ΔW [d_out, d_in], in the dtype of `delta`.

    Raises:
        InputError: The share is out of range, or the shapes differ.

    Source: RECT (arXiv 2401.04700), as AlphaEdit's public code runs it (top 40 %).
    """
    if not 0.0 < keep <= 1.0:
        raise InputError(f"keep is {keep}; expected a share above 0 and at most 1.")
    if delta.shape != weight.shape or delta.ndim != 2:
        raise InputError(f"The update is {list(delta.shape)} and the weight {list(weight.shape)}; expected one shape.")
    delta = delta.detach()
    change = (delta / (weight.detach().to(delta) + _OFFSET)).abs().masked_fill_(delta == 0, 0.0)  # 0/0 is no change
    # The digits are those of the quantile's position: 1 − 0.4 is not 0.6 to the last bit.
    position = math.ceil(round((1.0 - keep) * (change.numel() - 1), 6))
    threshold = change.flatten().kthvalue(position + 1).values
    return _dense(torch.where(change >= threshold, delta, 0.0))


@checked(sizes=False)
@torch.no_grad()
def prune(
    total_residuals: Residuals, total_dual_keys: DualKeys, weight0: Weight, log_base: Measured = math.e
) -> Factors:
    """PRUNE: restrain the large singular values of everything that was ever added to a weight.

    With s_max the largest singular value of the *untouched* weight W₀, a singular value s of the *total* update
    becomes

        f(s) = s                                      where s ≤ s_max
        f(s) = log_b(s) − log_b(s_max) + s_max        above

    so the weight to write is W₀ plus the result. (Its public code adds the result to weights that already hold
    the update.) Nothing is done where no singular value exceeds s_max.

    f restrains only where s_max ≥ 1/ln(b): below, its slope at s_max is above 1 and it *raises* the
    singular values just beyond. That is the published formula, in the units of the weights.

    The singular values come from the factors: two QR decompositions and the SVD of a matrix of order
    min(n, d_out) by min(n, d_in).

    Args:
        total_residuals: R of the total update: the residuals of all updates so far, stacked.
        total_dual_keys: Q of the total update.
        weight0: W₀, before any edit.
        log_base: b; AlphaEdit's comparison ran e, and 1.2 is quoted for the original.

    Returns:
        Factors of the conditioned total update in float64, at most min(n, d_out, d_in) rows unless unchanged.

    Raises:
        InputError: The base is not above 1, or the shapes do not fit.

    Source: PRUNE (arXiv 2405.16821).
    """
    if not (math.isfinite(log_base) and log_base > 1.0):
        raise InputError(f"log_base is {log_base}; expected a finite number above 1.")
    residuals, dual_keys = _float64(total_residuals, total_dual_keys, weight0)
    if len(residuals) == 0:
        return residuals, dual_keys
    left, right = torch.linalg.qr(residuals.T), torch.linalg.qr(dual_keys.T)
    U, S, Vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    largest = spectral_norm(weight0)
    if largest == 0.0:
        raise InputError("The untouched weight is zero; expected one with a largest singular value above 0.")
    above = S.gt(largest)
    if not bool(above.any()):
        return residuals, dual_keys
    restrained = torch.where(above, (S / largest).log() / math.log(log_base) + largest, S)
    return (left.Q @ (U * restrained)).T, (right.Q @ Vh.T).T


@checked(sizes=False)
@torch.no_grad()
def cap_norm(residuals: Residuals, dual_keys: DualKeys, weight: Weight, ratio: Measured) -> Factors:
    """Scale an update down so that ‖ΔW‖_F ≤ ratio · ‖W‖_F; one that is within stays as it is.

    Args:
        residuals: R.
        dual_keys: Q.
        weight: W, to be measured against.
        ratio: Largest relative norm, above 0.

    Returns:
        The factors in float64, R scaled.

    Raises:
        InputError: The ratio is not a finite number above 0, or the shapes do not fit.
    """
    if not (math.isfinite(ratio) and ratio > 0.0):
        raise InputError(f"ratio is {ratio}; expected a finite number above 0.")
    residuals, dual_keys = _float64(residuals, dual_keys, weight)
    norm = frobenius_norm(residuals, dual_keys)
    most = ratio * float(torch.linalg.matrix_norm(weight.detach().double()).item())
    return (residuals * (most / norm) if norm > most else residuals), dual_keys


@checked(sizes=False)
@torch.no_grad()
def retained(residuals: Residuals, dual_keys: DualKeys, keys: Keys, wanted_residuals: Residuals) -> Float[Tensor, " n"]:
    """How much of each edit an update gives: ⟨ΔW k, r⟩ / ⟨r, r⟩.

    1 is all of it, 0 none, below 0 the opposite; above 1 more than was asked for. An update that was
    solved with equality has 1 everywhere before post-steps.

    Args:
        residuals: R of the update [m, d_out], post-steps included.
        dual_keys: Q of the update [m, d_in].
        keys: Keys of the edits [n, d_in], old ones or new.
        wanted_residuals: What each edit was to add at its key [n, d_out].

    Returns:
        One share an edit, float64; NaN for an edit that wanted nothing.

    Raises:
        InputError: The shapes do not fit.
    """
    residuals, dual_keys = residuals.detach().double(), dual_keys.detach().double()
    keys, wanted = keys.detach().to(dual_keys), wanted_residuals.detach().to(residuals)
    matrices = all(one.ndim == 2 for one in (residuals, dual_keys, keys, wanted))
    sizes = (len(keys), dual_keys.shape[1], residuals.shape[1]) if matrices else ()
    if not matrices or sizes != (len(wanted), keys.shape[1], wanted.shape[1]):
        raise InputError(
            f"Keys {list(keys.shape)} and residuals {list(wanted.shape)} of edits do not fit an update with residuals "
            f"{list(residuals.shape)} and dual keys {list(dual_keys.shape)}."
        )
    given = (keys @ dual_keys.T) @ residuals
    shares: Tensor = (given * wanted).sum(dim=1) / wanted.square().sum(dim=1)
    return shares


@checked(sizes=False)
@torch.no_grad()
def retained_in_all(update: Factors, keys: Keys, wanted_residuals: Residuals) -> float | None:
    """How much of all edits together an update gives: Σ ⟨ΔW k, r⟩ / Σ ⟨r, r⟩.

    An edit weighs as much as it wanted to change: one whose fact the model knew already, with a residual of
    rounding or of nothing, says nothing about the others.

    Args:
        update: R and Q, post-steps included.
        keys: Keys of the edits [n, d_in].
        wanted_residuals: What each edit was to add at its key [n, d_out].

    Returns:
        The share, or None where no edit wanted anything.
    """
    shares = retained(*update, keys, wanted_residuals)
    wanted = wanted_residuals.detach().double().square().sum(dim=1)
    if not float(wanted.sum()):
        return None
    return float((shares.nan_to_num() * wanted).sum() / wanted.sum())


def _dense(delta: Weight) -> Factors:
    """A matrix as factors, exactly: I and itself."""
    return torch.eye(len(delta), dtype=delta.dtype, device=delta.device), delta


def _float64(residuals: Residuals, dual_keys: DualKeys, weight: Weight) -> Factors:
    """The factors in float64, once they are known to be an update of this weight."""
    matrices = residuals.ndim == dual_keys.ndim == 2 and len(residuals) == len(dual_keys)
    if not matrices or (residuals.shape[1], dual_keys.shape[1]) != tuple(weight.shape):
        raise InputError(
            f"Residuals {list(residuals.shape)} and dual keys {list(dual_keys.shape)} are no update of a weight "
            f"{list(weight.shape)}; expected [n, d_out] and [n, d_in] for [d_out, d_in]."
        )
    return residuals.detach().double(), dual_keys.detach().double()
