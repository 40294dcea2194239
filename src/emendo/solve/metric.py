"""The preservation metric of one layer, factorised once and reused by every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import check_width, checked
from emendo.errors import InfeasibleError, InputError
from emendo.shapes import Keys, Moment
from emendo.solve.conditioning import inverse_norm, one_norm
from emendo.solve.null_space import NullSpace, find_null_space
from emendo.solve.preservation import check_history_weight, extend_history, preservation_metric
from emendo.solve.remembered import Remembered
from emendo.solve.settings import Preservation


@dataclass(frozen=True, eq=False)
class PreparedLayer:
    """A = f(C) + H with its Cholesky factor: A = L Lᵀ, without the keys that are only `remembered`. Made by `prepare`.

    A itself is not kept: only the primal form needs it, and `metric` rebuilds it. With a null space
    U [d_in, r], A and L are those of the r open directions, A_U = Uᵀ A U = L Lᵀ, and A⁻¹ stands for
    U A_U⁻¹ Uᵀ throughout.

    Attributes:
        moment: C, kept as it was given.
        preservation: f.
        history: H, or None.
        cholesky: L, lower triangular, float64.
        condition: Estimate of the condition number ‖A‖₁ ‖A⁻¹‖₁ (a lower bound, nearly always
            within a factor of 3; between κ₂ and r · κ₂), without the remembered keys.
        null_space: U, or None where every direction is open.
        given: f as it was asked for, where `preservation` has a ridge more (`Preservation.dead_ridge`).
        remembered: Keys of the latest edits, which are in A beside H and not in L; None where there are none.
    """

    moment: Moment
    preservation: Preservation
    history: Moment | None
    cholesky: Float[Tensor, "r r"]
    condition: float
    null_space: NullSpace | None = None
    given: Preservation | None = None
    remembered: Remembered | None = None

    @property
    def asked(self) -> Preservation:
        """F as it was asked for."""
        return self.given or self.preservation

    @property
    def added_ridge(self) -> float:
        """The ridge that dead directions made necessary; 0 where there are none."""
        return 0.0 if self.given is None else self.preservation.ridge - self.given.ridge

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return self.moment.shape[0]

    @property
    def dimensions(self) -> int:
        """r: how many directions an update may use; d_in unless a null space is chosen."""
        return self.cholesky.shape[0]

    @checked(sizes=False)
    def with_history(self, history: Moment | None) -> PreparedLayer:
        """The same layer with another history H in place of this one's.

        What depends on C alone is shared and not computed again: with a null space its eigenvectors,
        which leaves 2 d_in² r + 2 d_in r² operations for Uᵀ H U and r³/3 for the factor. Without one, A is
        factorised anew, d_in³/3.

        Args:
            history: H from earlier edits, see `extend_history`; None for none.

        Raises:
            InputError: The history is not a finite symmetric matrix of the moment's size.
            InfeasibleError: The metric is not positive definite beyond rounding.
        """
        return replace(_factorised(self.moment, self.preservation, history, self.null_space), given=self.given)

    @property
    def holds_history(self) -> bool:
        """Whether earlier edits are part of what it preserves."""
        return self.history is not None or self.remembered is not None

    @checked(sizes=False)
    @torch.no_grad()
    def remembering(self, keys: Keys, *, weight: float) -> PreparedLayer:
        """The same layer with more keys to preserve, beside those that it preserves already (`extend_history`).

        Keys are kept as they are until there are r/16 of them; then these become part of H, and A is factorised anew.
        Blocks are counted from the first key on, so that the result depends on the keys and their order alone, not on
        how many came at a time.

        Args:
            keys: The keys that were edited.
            weight: What each of them counts, more than 0.

        Raises:
            InputError: The weight is not a positive finite number, or the sizes differ.
            InfeasibleError: The metric is not positive definite beyond rounding.
        """
        check_history_weight(weight)
        base, before, rows = replace(self, remembered=None), self.remembered, self._like(keys)
        whitened = rows.new_empty(0, self.dimensions)
        if before is not None and before.weight != weight:
            base = base.with_history(extend_history(base.history, before.keys, weight=before.weight))
        elif before is not None:
            rows, whitened = torch.cat([before.keys, rows]), before.whitened
        block = max(1, self.dimensions // 16)
        full = len(rows) // block * block
        if full:
            history = base.history
            for first in range(0, full, block):
                history = extend_history(history, rows[first : first + block], weight=weight)
            base, rows, whitened = base.with_history(history), rows[full:], whitened[:0]
        if not len(rows):
            return base
        # One at a time: a row's rounding must not depend on which others are solved with it.
        whitened = torch.cat([whitened, *(base.whiten(row[None]) for row in rows[len(whitened) :])])
        return replace(base, remembered=Remembered.of(rows, whitened, weight))

    def refuse_starved(self, keys: Keys, names: Sequence[str]) -> None:
        """Refuse equality where C is of too few keys; of a dense layer that is known before (`PreparedBlocks`)."""

    def metric(self) -> Float[Tensor, "r r"]:
        """A, or A_U, rebuilt in float64."""
        metric = _metric(self.moment, self.preservation, self.history, self.null_space)
        if self.remembered is None:
            return metric
        kept = self.reduce(self.remembered.keys)
        return metric.addmm_(kept.T, kept, alpha=self.remembered.weight)

    @checked
    def reduce(self, keys: Keys) -> Float[Tensor, "n r"]:
        """The keys' coordinates in the open directions: K U, or K."""
        keys = self._like(keys)
        return keys if self.null_space is None else self.null_space.reduce(keys)

    @checked
    def lift(self, reduced: Float[Tensor, "n r"]) -> Keys:
        """From coordinates in the open directions to all coordinates: Z Uᵀ, or Z."""
        return reduced if self.null_space is None else self.null_space.lift(reduced)

    @checked
    def whiten(self, keys: Keys) -> Float[Tensor, "n r"]:
        """Z with Z Zᵀ = K A⁻¹ Kᵀ: K L⁻ᵀ, or K U L⁻ᵀ, damped along what is remembered."""
        # On the transpose: row-major K is column-major Kᵀ, which LAPACK takes without a copy.
        right: Tensor = self.reduce(keys).T
        left: Tensor = torch.linalg.solve_triangular(self.cholesky, right, upper=False)
        return left.T if self.remembered is None else self.remembered.damped(left.T)

    @checked
    def unwhiten(self, whitened: Float[Tensor, "n r"]) -> Keys:
        """Z L⁻¹, or Z L⁻¹ Uᵀ, of the damped rows, so that ``unwhiten(whiten(K)) = K A⁻¹``."""
        check_width("whitened", whitened, self.dimensions)
        whitened = whitened if self.remembered is None else self.remembered.damped(whitened)
        left: Tensor = torch.linalg.solve_triangular(self.cholesky.T, whitened.T, upper=True)
        return self.lift(left.T)

    @checked
    def leverage(self, keys: Keys) -> Float[Tensor, " n"]:
        """Leverage k A⁻¹ kᵀ of every key: one over the least price of a unit change there.

        Memorizing a residual r at k alone costs ‖r‖² / (k A⁻¹ kᵀ), so the cheapest way to share a
        request out over layers is in proportion to its leverage at each.
        """
        return self.whiten(keys).square().sum(dim=1)

    def _like(self, keys: Keys) -> Keys:
        if keys.ndim != 2:
            raise InputError(f"the keys are of shape {list(keys.shape)}; expected [n, {self.d_in}]")
        check_width("keys", keys, self.d_in)
        return keys.detach().to(self.cholesky)


def prepare_dense(moment: Moment, preservation: Preservation, history: Moment | None) -> PreparedLayer:
    """`prepare` of one dense matrix C; `solve.blocks.prepare_blocks` is that of a mixture of experts."""
    null_space = find_null_space(moment, preservation)
    if null_space is not None or not preservation.dead_ridge:
        return _factorised(moment, preservation, history, null_space)
    try:
        alive = _factorised(moment, preservation, None, None)
    except InfeasibleError:
        mean = moment.diagonal().to(torch.float64).mean().item() * preservation.weight
        ridged = replace(preservation, ridge=preservation.ridge + preservation.dead_ridge * mean)
        return replace(_factorised(moment, ridged, history, None), given=preservation)
    return alive if history is None else alive.with_history(history)


def _metric(
    moment: Moment, preservation: Preservation, history: Moment | None, null_space: NullSpace | None
) -> Float[Tensor, "r r"]:
    if null_space is None:
        return preservation_metric(preservation, moment, history)
    return null_space.metric(preservation, moment, history)


@torch.no_grad()
def _factorised(
    moment: Moment, preservation: Preservation, history: Moment | None, null_space: NullSpace | None
) -> PreparedLayer:
    metric = _metric(moment, preservation, history, null_space)
    norm, diagonal = one_norm(metric), metric.diagonal().clone()
    cholesky, info = torch.linalg.cholesky_ex(metric)
    del metric
    size = diagonal.shape[0]
    # A pivot relative to its diagonal entry is the part of that coordinate which the ones before it
    # do not explain. Rounding leaves up to about d_in · eps of it where exactly nothing is left.
    squares = cholesky.diagonal().square()
    lost = ~(squares / diagonal > size * torch.finfo(torch.float64).eps)  # NaN is lost too
    if null_space is not None:
        # In C's own eigenvectors every pivot is all of its entry, so the entry has to be more than rounding.
        lost |= ~(squares > null_space.rounding(preservation))
    if info.item() or bool(lost.any()):
        failed = int(info.item()) or int(lost.int().argmax().item()) + 1
        if null_space is not None:
            raise _closed_null_space(null_space, preservation)
        raise _not_positive_definite(diagonal, failed, preservation, moment.dtype)
    condition = norm * inverse_norm(lambda x: torch.cholesky_solve(x[:, None], cholesky)[:, 0], size, like=cholesky)
    return PreparedLayer(moment, preservation, history, cholesky, condition, null_space)


def _closed_null_space(null_space: NullSpace, preservation: Preservation) -> InfeasibleError:
    """Where preserved keys do not vary at all, only a ridge prices an update."""
    rounding = null_space.rounding(preservation)
    priced = null_space.eigenvalues * preservation.weight + preservation.ridge
    free, largest = int((priced <= rounding).sum().item()), priced.max().item()
    what = (
        f"in {free} of them it is no larger than float64 rounding, so that an update there would cost nothing"
        if free
        else "the history is not positive semidefinite, as one from `extend_history` is"
    )
    d_in, r = null_space.basis.shape
    return InfeasibleError(
        f"In the null space ({r} of {d_in} dimensions) the preservation metric A = {preservation.weight:g}*C + "
        f"{preservation.ridge:g}*I (+ history) is not positive definite: {what}. Add a ridge, e.g. "
        f"`--set preservation.ridge={max(1e-2 * largest, 10 * rounding, 1e-12):.0e}` (AlphaEdit has 10)."
    )


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
    if silent:
        # Counting goes on for ever without a unit that preserved text never makes fire.
        return InfeasibleError(
            f"The preservation metric A = {preservation.weight:g}*C + {preservation.ridge:g}*I (+ history) is not "
            f"positive definite: {what}: these units never fire on preserved text, as a ReLU's may not, and more of it "
            f"need not help. Add a ridge where that is so, `--set preservation.dead_ridge=1e-4`, or everywhere, "
            f"`--set preservation.ridge={ridge:.0e}`."
        )
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
        f"tokens looks like this.{precision} Collect more tokens (`--set moments.multiple=20` in an edit, "
        f"`emendo moments collect --tokens {10 * d_in}` by itself), or add a ridge, e.g. "
        f"`--set preservation.ridge={ridge:.0e}`."
    )
