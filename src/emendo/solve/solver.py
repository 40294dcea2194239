"""The solver: dual keys Q of the update ΔW = RᵀQ.

    Q = (K A⁻¹ Kᵀ + s I)⁻¹ K A⁻¹        A = f(C) + H

For s > 0, ΔW minimises ``s · tr(Δ A Δᵀ) + ‖Δ Kᵀ − Rᵀ‖²``; for s = 0 it minimises ``tr(Δ A Δᵀ)``
subject to ``Δ Kᵀ = Rᵀ``. Two numerical forms give the same Q and only cost differently:

* dual: an n×n factorisation, with the factor of A reused: 2 n d_in² + O(n² d_in) operations;
* primal, s > 0 only: Q = K (s A + KᵀK)⁻¹, a d_in×d_in factorisation, for n > d_in.

With a null space A⁻¹ is U A_U⁻¹ Uᵀ, and the primal form works in the r coordinates K U.

Everything is computed in float64 on the device of the second moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from emendo.arguments import Measured, checked
from emendo.errors import InfeasibleError, InputError, NumericalError
from emendo.shapes import DualKeys, Keys
from emendo.solve.conditioning import Vector, inverse_norm, one_norm
from emendo.solve.feasibility import (
    KEY_TOLERANCE,
    REMEDY,
    Gram,
    describe_conflicts,
    require_finite_keys,
    require_independent,
)
from emendo.solve.metric import PreparedLayer

Form = Literal["auto", "dual", "primal"]

CONSTRAINT_TOLERANCE = 1e-6
"""Largest constraint error that may be called equality."""

_LARGEST_CONDITION = 1e12  # of a system that is solved at all: four digits are left
_ROUNDING = 1e-13  # residual, relative to 1, that needs no refinement
_REFINEMENTS = 3


@dataclass(frozen=True)
class SolveStats:
    """What one solve did.

    Attributes:
        form: The numerical form that ran, "dual" or "primal".
        n: Requests.
        d_in: Width of the keys.
        dimensions: Directions that the update may use: d_in, or those that a null space keeps.
        s: Memorization strength; 0 is equality.
        constraint_error: ‖Q K_cᵀ − I‖_F / √n, measured on Q: rounding for s = 0, for s > 0 what
            least squares leaves of the residuals.
        memorized: tr(Q K_cᵀ) / n, the mean part of a residual that its own request receives: 1 for
            s = 0. Times n it is the effective rank of the fit.
        metric_condition: Condition estimate of A, see `PreparedLayer.condition`.
        system_condition: The same of the system that was factorised, scaled to a unit diagonal.
        effective_lambda: s · weight, the λ (on the mean moment) of the MEMIT that equals this solve
            exactly; for s = 0, equality is the limit of MEMIT as λ → 0.
        effective_ridge: s · ridge, the ridge beside that λ.
        key_overlap_mean: Mean |cosine| between the keys of two requests in the metric A⁻¹; None for a single
            request, and where K A⁻¹ Kᵀ was not formed (primal form, constraint keys).
        key_overlap_max: The largest of them.
    """

    form: Literal["dual", "primal"]
    n: int
    d_in: int
    dimensions: int
    s: float
    constraint_error: float
    memorized: float
    metric_condition: float
    system_condition: float
    effective_lambda: float
    effective_ridge: float
    key_overlap_mean: float | None = None
    key_overlap_max: float | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """Dual keys Q [n, d_in] in float64, and how they came about."""

    dual_keys: DualKeys
    stats: SolveStats


@checked(sizes=False)
@torch.no_grad()
def check_keys(
    layer: PreparedLayer,
    keys: Keys,
    *,
    s: Measured,
    labels: Sequence[str] | None = None,
    tolerance: float = KEY_TOLERANCE,
    what: str = "keys",
) -> list[str]:
    """Refuse keys that `solve` could not memorize, before anything is written.

    Args:
        layer: The factorised preservation metric.
        keys: K, one row per request.
        s: Memorization strength; only equality (0) needs independent keys.
        labels: What messages call the requests; row numbers by default.
        tolerance: As in `solve`.
        what: What messages call the keys.

    Returns:
        What messages call the requests.

    Raises:
        InfeasibleError: Equality is asked of keys that cannot hold it; it names them.
        InputError: The keys have the wrong shape.
        NumericalError: Keys are not finite.
    """
    names = require_finite_keys(keys, layer.d_in, labels, what)
    if s == 0 and len(keys):
        layer.refuse_starved(keys, names)
        keys = keys.detach().to(layer.cholesky)
        require_independent(keys, names, tolerance, None if layer.null_space is None else layer.reduce(keys))
    return names


@checked(sizes=False)
@torch.no_grad()
def check_system(
    layer: PreparedLayer,
    keys: Keys,
    *,
    s: float,
    labels: Sequence[str] | None = None,
    tolerance: float = KEY_TOLERANCE,
) -> None:
    """Refuse keys that `solve` could not memorize, by K alone: also those that the metric cannot tell apart.

    Args:
        layer: The factorised preservation metric.
        keys: K, one row per request.
        s: Memorization strength; only equality (0) needs keys that can be told apart.
        labels: What messages call the requests; row numbers by default.
        tolerance: As in `solve`.

    Raises:
        InfeasibleError: Equality is asked of keys that cannot hold it; it names them.
        InputError: The keys have the wrong shape.
        NumericalError: Keys are not finite.
    """
    names = check_keys(layer, keys, s=s, labels=labels, tolerance=tolerance)
    if s == 0 and len(keys) > 1:
        whitened = layer.whiten(keys)
        system = whitened @ whitened.T
        _, _, condition = _factorise(system)
        if not condition <= _LARGEST_CONDITION:
            raise _entangled(layer, system, names, condition)


@checked(sizes=False)
@torch.no_grad()
def solve(
    layer: PreparedLayer,
    keys: Keys,
    *,
    s: Measured,
    constraint_keys: Keys | None = None,
    form: Form = "auto",
    labels: Sequence[str] | None = None,
    tolerance: float = KEY_TOLERANCE,
) -> Solution:
    """Dual keys of a batch of requests.

    Args:
        layer: The factorised preservation metric, from `prepare`.
        keys: K, one row per request.
        s: Memorization strength: 0 for equality (ROME, EMMET), 1 for MEMIT with λ as the
            preservation weight, α for EMMET as published with α on the diagonal.
        constraint_keys: K_c, for original ROME, which averages the keys in K over contexts but
            holds with equality at the bare prompts' keys: Q = (K A⁻¹ K_cᵀ)⁻¹ K A⁻¹. Needs s = 0.
        form: "dual" or "primal"; "auto" takes the primal form where s > 0 and n > d_in (the
            dimensions kept). A choice of cost, never of the answer.
        labels: What messages call the requests; row numbers by default.
        tolerance: How near to dependent keys may be under equality. Pass
            `key_tolerance(model dtype)` for a model that is not in float32.

    Returns:
        Q [n, d_in] and the figures of the solve. With no requests Q has no rows.

    Raises:
        InfeasibleError: Equality is asked of keys that cannot hold it; it names them.
        InputError: An argument is out of range or has the wrong shape.
        NumericalError: Keys are not finite, or rounding spoils the result.

    Source: ROME (arXiv 2202.05262) eq. 2, and its public code for the two kinds of keys; MEMIT
        (arXiv 2210.07229) eq. 14; EMMET (arXiv 2403.14236; 2405.00664 eq. 6 and 7); AlphaEdit (arXiv 2410.02355).
    """
    names = check_keys(layer, keys, s=s, labels=labels, tolerance=tolerance)
    chosen = _checked_form(form, s, len(keys), layer.dimensions, constraint_keys)
    keys = keys.detach().to(layer.cholesky)
    targets = keys
    if constraint_keys is not None:
        if constraint_keys.shape != keys.shape:
            raise InputError(
                f"Constraint keys {list(constraint_keys.shape)} do not fit keys {list(keys.shape)}; expected the same "
                "shape, one row a request."
            )
        check_keys(layer, constraint_keys, s=s, labels=labels, tolerance=tolerance, what="constraint keys")
        targets = constraint_keys.detach().to(layer.cholesky)
    if len(keys) == 0:
        return _solution(layer, _Solved(keys, 1.0, 0.0), targets, s, chosen)
    if chosen == "primal":
        solved = _primal(layer, keys, s)
    elif constraint_keys is None:
        solved = _dual(layer, keys, s, names)
    else:
        solved = _mixed(layer, keys, targets, names)
    return _solution(layer, solved, targets, s, chosen)


class _Solved(NamedTuple):
    dual_keys: DualKeys
    condition: float
    constraint_error: float
    key_overlap: tuple[float | None, float | None] = (None, None)


def _checked_form(
    form: Form, s: float, n: int, dimensions: int, constraint_keys: Keys | None
) -> Literal["dual", "primal"]:
    """The form to run, once s and the combination of arguments are known to make sense."""
    if not (math.isfinite(s) and s >= 0.0):
        raise InputError(f"s is {s}; expected a finite number of at least 0 (0 is equality).")
    if form not in ("auto", "dual", "primal"):
        raise InputError(f"form is {form!r}; expected 'auto', 'dual' or 'primal'.")
    if form == "primal" and s == 0.0:
        raise InputError("form='primal' needs s > 0: sA + KᵀK is singular for equality. Use form='dual'.")
    if constraint_keys is not None and (s != 0.0 or form == "primal"):
        raise InputError(
            f"constraint_keys hold with equality in the dual form; got s = {s:g}, form={form!r}. "
            "Pass s=0, or leave constraint_keys out."
        )
    if form != "auto":
        return form
    return "primal" if s > 0.0 and n > dimensions else "dual"


def _dual(layer: PreparedLayer, keys: Keys, s: float, names: Sequence[str]) -> _Solved:
    """Q = T Z L⁻¹ with Z = K L⁻ᵀ and T = (Z Zᵀ + s I)⁻¹."""
    whitened = layer.whiten(keys)
    system = whitened @ whitened.T
    overlap = _key_overlap(system)
    system.diagonal().add_(s)
    factor, scale, condition = _factorise(system)
    if not condition <= _LARGEST_CONDITION:  # NaN counts as singular
        raise _lost_in_rounding(layer, keys, s, condition) if s > 0.0 else _entangled(layer, system, names, condition)
    inverse = torch.cholesky_inverse(factor).mul_(scale).mul_(scale[:, None])
    dual_keys, error = _refined(layer.unwhiten(inverse @ whitened), inverse, keys, s)
    return _Solved(dual_keys, condition, error, overlap)


def _key_overlap(gram: Gram) -> tuple[float | None, float | None]:
    """Mean and largest |cosine| between different rows of K, from K A⁻¹ Kᵀ."""
    n = len(gram)
    if n < 2:
        return None, None
    # A key of nothing, which only least squares takes, overlaps none.
    scale = torch.where(gram.diagonal() > 0, gram.diagonal().rsqrt(), 0.0)
    cosines = (gram * scale * scale[:, None]).abs_()
    cosines.diagonal().zero_()
    return float(cosines.sum().item()) / (n * (n - 1)), min(1.0, float(cosines.max().item()))


def _primal(layer: PreparedLayer, keys: Keys, s: float) -> _Solved:
    """Q = K (s A + KᵀK)⁻¹, in the coordinates that the null space keeps."""
    kept = layer.reduce(keys)
    factor, scale, condition = _factorise(layer.metric().mul_(s).addmm_(kept.T, kept))
    if not condition <= _LARGEST_CONDITION:  # NaN counts as singular
        raise _lost_in_rounding(layer, keys, s, condition)
    dual_keys = layer.lift(torch.cholesky_solve((kept * scale).T, factor).T * scale)
    return _Solved(dual_keys, condition, _constraint_error(dual_keys, keys))


def _mixed(layer: PreparedLayer, keys: Keys, targets: Keys, names: Sequence[str]) -> _Solved:
    """Q = (Z Z_cᵀ)⁻¹ Z L⁻¹: not symmetric, and singular where a k A⁻¹ k_cᵀ vanishes."""
    whitened, pointed = layer.whiten(keys), layer.whiten(targets)
    lengths = whitened.norm(dim=1, keepdim=True), pointed.norm(dim=1, keepdim=True)
    cosines = (whitened / lengths[0]) @ (pointed / lengths[1]).T
    inverse, info = torch.linalg.inv_ex(cosines)
    condition = max(1.0, one_norm(cosines)) * one_norm(inverse) if not info.item() else math.inf
    if not condition <= _LARGEST_CONDITION:
        worst = int(cosines.diagonal().abs().argmin().item())
        raise InfeasibleError(
            "The averaged keys do not reach the prompts' own keys: K A⁻¹ K_cᵀ is singular "
            f"(condition {condition:.0e}), worst at {names[worst]} with a cosine of "
            f"{cosines[worst, worst].item():.0e}. Such an edit would disable the model. Use one "
            "key for both, e.g. `--method r-rome`."
        )
    inverse = inverse / lengths[0].T / lengths[1]
    dual_keys, error = _refined(layer.unwhiten(inverse @ whitened), inverse, targets, 0.0)
    return _Solved(dual_keys, condition, error)


def _factorise(system: Gram) -> tuple[Gram, Vector, float]:
    """Scale a matrix M to D M D with a unit diagonal, in place, and factorise that.

    The scaling costs Cholesky no accuracy and shows the condition that counts.

    Returns:
        The factor of D M D, the diagonal of D, and the condition of D M D: infinite where it is not
        positive definite, and the factor then useless.
    """
    scale = system.diagonal().rsqrt()
    system.mul_(scale).mul_(scale[:, None])
    factor, info = torch.linalg.cholesky_ex(system)
    if info.item():
        return factor, scale, math.inf
    condition = one_norm(system) * inverse_norm(
        lambda x: torch.cholesky_solve(x[:, None], factor)[:, 0], len(scale), like=scale
    )
    return factor, scale, condition


def _lost_in_rounding(layer: PreparedLayer, keys: Keys, s: float, condition: float) -> NumericalError:
    """Least squares so close to equality that float64 does not see the difference."""
    # Requests that share a key leave a smallest eigenvalue of s beside a largest of their summed leverages.
    enough = 100.0 * float(layer.leverage(keys).sum()) / _LARGEST_CONDITION
    weight = layer.preservation.weight * enough / s
    return NumericalError(
        f"s = {s:g} is lost in rounding beside the keys (condition {condition:.0e}, expected at most "
        f"{_LARGEST_CONDITION:.0e}). Use a larger one, e.g. `--set memorization.s={enough:.0e}`"
        + (f", or a larger preservation weight, e.g. `--set preservation.weight={weight:.0e}`." if weight else ".")
    )


def _entangled(layer: PreparedLayer, gram: Gram, names: Sequence[str], condition: float) -> InfeasibleError:
    """The keys differ, but hardly in any way that the metric counts."""
    conflicts = list(describe_conflicts(gram, names, torch.full_like(gram[0], _LARGEST_CONDITION**-0.5)))
    ridge = 1e-2 * (layer.preservation.weight or 1.0) * float(layer.moment.diagonal().mean())  # beside weight · C
    return InfeasibleError(
        "\n".join(
            [
                "These keys differ only in directions where the preserved keys vary so much that K "
                f"A⁻¹ Kᵀ is singular in float64 (condition {condition:.0e}):",
                *(f"  {line}" for line in conflicts or [_nearest(gram, names)]),
                f"{REMEDY} A ridge helps too, e.g. `--set preservation.ridge={ridge:.0e}`.",
            ]
        )
    )


def _nearest(gram: Gram, names: Sequence[str]) -> str:
    """The two requests that are most alike in the metric, where none is a combination of others by itself."""
    alike = gram.abs().fill_diagonal_(-1.0)
    first, second = divmod(int(alike.argmax().item()), len(gram))
    return f"{names[first]} and {names[second]} are the most alike (cosine {gram[first, second].item():.9f})"


def _refined(dual_keys: DualKeys, inverse: Gram, targets: Keys, s: float) -> tuple[DualKeys, float]:
    """Newton steps on Q K_cᵀ + s T = I, where T is the inverse of the system.

    Each squares the residual, and the residual is measured on the keys themselves. So an ill-conditioned system
    costs no accuracy: what remains is the rounding of K A⁻¹. Where the system is well conditioned no step is taken.

    Returns:
        Q, and its constraint error.
    """
    for steps_left in reversed(range(_REFINEMENTS + 1)):
        gap = dual_keys @ targets.T
        gap.neg_().diagonal().add_(1.0)
        error = _norm(gap)
        gap.sub_(inverse, alpha=s)
        if not steps_left or _norm(gap) <= _ROUNDING:
            break
        dual_keys = torch.addmm(dual_keys, gap, dual_keys)
        if s > 0.0:
            inverse = torch.addmm(inverse, gap, inverse)
    return dual_keys, error


def _solution(
    layer: PreparedLayer, solved: _Solved, targets: Keys, s: float, form: Literal["dual", "primal"]
) -> Solution:
    """Refuse a result that is not what it claims to be, and pack up the others."""
    dual_keys, condition, error, overlap = solved
    if not math.isfinite(error) or (s == 0.0 and error > CONSTRAINT_TOLERANCE):
        raise NumericalError(
            f"The solve ended with a constraint error of {error:.1e}; expected at most {CONSTRAINT_TOLERANCE:.0e} "
            f"(condition of A {layer.condition:.0e}, of the keys' system {condition:.0e}). {REMEDY}"
        )
    n = len(dual_keys)
    stats = SolveStats(
        form=form,
        n=n,
        d_in=layer.d_in,
        dimensions=layer.dimensions,
        s=float(s),
        constraint_error=error,
        memorized=(dual_keys * targets).sum().item() / n if n else 1.0,
        metric_condition=layer.condition,
        system_condition=condition,
        effective_lambda=float(s) * layer.preservation.weight,
        effective_ridge=float(s) * layer.preservation.ridge,
        key_overlap_mean=overlap[0],
        key_overlap_max=overlap[1],
    )
    return Solution(dual_keys, stats)


def _constraint_error(dual_keys: DualKeys, targets: Keys) -> float:
    """‖Q K_cᵀ − I‖_F / √n, through matrices of order min(n, d_in)."""
    n, d_in = dual_keys.shape
    if n <= d_in:
        gap = dual_keys @ targets.T
        gap.diagonal().sub_(1.0)
        return _norm(gap)
    # ‖QKᵀ‖² − 2 tr(QKᵀ) + n. No cancellation: a rank of at most d_in < n leaves n − d_in at least.
    fitted = (dual_keys * targets).sum().item()
    square = ((dual_keys.T @ dual_keys) * (targets.T @ targets)).sum().item()
    return math.sqrt((square - 2.0 * fitted) / n + 1.0)


def _norm(gap: Gram) -> float:
    """‖G‖_F / √n: the root mean square over the requests."""
    return float(torch.linalg.matrix_norm(gap).item()) / math.sqrt(len(gap))
