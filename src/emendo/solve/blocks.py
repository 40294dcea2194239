"""The preservation metric of a mixture of experts: the dense one of stacked keys, with one block an expert.

A mixture is one linear map on the stacked key ``φ = [g₁k₁ … g_E k_E]`` (`models.experts`), E times as wide as one
expert's key. Of its second moment only the diagonal blocks ``Cₑ = E[gₑ² kₑ kₑᵀ]`` are kept, so that

    A = blockdiag(weight · Cₑ + ridge · I) + w PᵀP,        P: the keys of earlier edits

and the engine's one formula gives, with Φ the stacked keys, ``D = Σₑ Φₑ Aₑ⁻¹ Φₑᵀ + s I`` and ``Q = D⁻¹ Φ A⁻¹``. A layer
of one block is a dense layer. The history couples experts: it is no block matrix, and it is kept exactly, as keys
(`solve.remembered`).

An expert that few preserved keys reach has a Cₑ that says little. Each is drawn towards the mean of all, C̄, by
``ρₑ = width / (width + nₑ)``, which leaves a Cₑ of many keys as it is; and equality through an expert of fewer than a
quarter of width keys is refused.

Source: MoEEdit (arXiv 2602.10965) has the objective with ``Aₑ⁻¹ = Pₑ/λ``; this is its closed form. Drawing a second
    moment towards another one: Ledoit and Wolf, J. Multivariate Anal. 88 (2004).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.arguments import check_width, checked
from emendo.errors import InfeasibleError, InputError, MomentsError
from emendo.shapes import Keys, Moment
from emendo.solve.block_moment import BlockMoment
from emendo.solve.conditioning import Vector, inverse_norm, one_norm
from emendo.solve.feasibility import REMEDY
from emendo.solve.metric import PreparedLayer
from emendo.solve.preservation import check_moment
from emendo.solve.remembered import Remembered
from emendo.solve.settings import Preservation

_NAMED = 5
"""Experts and requests that a message names."""


@dataclass(frozen=True, eq=False)
class PreparedBlocks(PreparedLayer):
    """`PreparedLayer` of a mixture: `cholesky` has one factor an expert, ``[experts, width, width]``."""

    moment: BlockMoment = field()  # type: ignore[assignment]
    cholesky: Float[Tensor, "experts width width"] = field()

    @property
    def dimensions(self) -> int:
        """All of them: nothing is closed."""
        return self.d_in

    @checked(sizes=False)
    def with_history(self, history: Moment | None) -> PreparedBlocks:
        """The same layer without a history.

        Raises:
            InputError: A matrix is given; it would couple all experts.
        """
        if history is not None:
            raise InputError(
                f"{self.moment.name} is a mixture, whose history is kept as keys and not as a matrix; expected "
                "metric.remembering(keys, weight=...)"
            )
        return replace(self, remembered=None)

    @checked(sizes=False)
    @torch.no_grad()
    def remembering(self, keys: Keys, *, weight: float) -> PreparedBlocks:
        """The same layer with more keys to preserve: A + weight · KᵀK, exactly.

        Args:
            keys: The keys that were edited.
            weight: What each of them counts, more than 0.

        Raises:
            InputError: The weight differs from that of the keys before.
        """
        keys = self._like(keys)
        before = self.remembered
        if before is not None:
            if before.weight != weight:
                raise InputError(
                    f"the history of {self.moment.name} counts its keys {before.weight:g} each, found {weight:g}; "
                    "expected one weight for all (history.weight)"
                )
            keys = torch.cat([before.keys, keys])
        if not len(keys):
            return self
        base = replace(self, remembered=None)
        return replace(base, remembered=Remembered.of(keys, base.whiten(keys), weight))

    def metric(self) -> Float[Tensor, "d_in d_in"]:
        """A in float64, as one matrix."""
        whole: Tensor = torch.block_diag(*(_block(self.moment, self.preservation, e) for e in range(self._experts)))
        if self.remembered is None:
            return whole
        return whole.addmm_(self.remembered.keys.T, self.remembered.keys, alpha=self.remembered.weight)

    @checked
    def whiten(self, keys: Keys) -> Float[Tensor, "n d_in"]:
        """Z = K A^(-1/2) with Z Zᵀ = K A⁻¹ Kᵀ; of each expert, the rows that reach it."""
        keys = self._like(keys)
        found = torch.zeros_like(keys)
        for expert, rows, columns in self._reached(keys):
            right = keys[rows, columns].T
            found[rows, columns] = torch.linalg.solve_triangular(self.cholesky[expert], right, upper=False).T
        return found if self.remembered is None else self.remembered.damped(found)

    @checked
    def unwhiten(self, whitened: Float[Tensor, "n d_in"]) -> Keys:
        """``unwhiten(whiten(K)) = K A⁻¹``."""
        check_width("whitened", whitened, self.d_in)
        if self.remembered is not None:
            whitened = self.remembered.damped(whitened)
        found = torch.zeros_like(whitened)
        for expert, rows, columns in self._reached(whitened):
            right = whitened[rows, columns].T
            found[rows, columns] = torch.linalg.solve_triangular(self.cholesky[expert].T, right, upper=True).T
        return found

    def refuse_starved(self, keys: Keys, names: Sequence[str]) -> None:
        """Refuse equality through experts whose Cₑ says next to nothing.

        Raises:
            InfeasibleError: Names them, and the requests.
        """
        least = self.moment.width / 4
        told = []
        for expert, rows, _ in self._reached(self._like(keys)):
            if (count := int(self.moment.counts[expert])) < least:
                who = [names[row] for row in rows[:, 0].tolist()]
                more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
                told.append(f"expert {expert} ({count} keys; {', '.join(who[:_NAMED])}{more})")
        if told:
            more = f"; and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
            raise InfeasibleError(
                f"{self.moment.name}: requests go through experts that fewer than width / 4 = {least:g} preserved keys "
                f"reach, so that what else these experts do is not known: {'; '.join(told[:_NAMED])}{more}, of "
                f"{self.moment.experts} experts. Count more text (--set moments.multiple=40). {REMEDY}"
            )

    @property
    def _experts(self) -> int:
        return self.moment.experts

    def _reached(self, rows: Keys) -> Iterator[tuple[int, Int[Tensor, "n 1"], Int[Tensor, " width"]]]:
        """Experts that any row reaches, with those rows and the expert's columns."""
        width = self.moment.width
        reached = (rows.view(len(rows), self._experts, width) != 0).any(dim=2)
        for expert in reached.any(dim=0).nonzero()[:, 0].tolist():
            columns = torch.arange(expert * width, (expert + 1) * width, device=rows.device)
            yield expert, reached[:, expert].nonzero(), columns


@torch.no_grad()
def prepare_blocks(moment: BlockMoment, preservation: Preservation) -> PreparedBlocks:
    """Factorise every expert's metric: experts · width³ / 3 operations.

    Raises:
        InputError: A null space is asked for.
        MomentsError: A block is not a finite symmetric matrix.
        InfeasibleError: A block is not positive definite beyond rounding; names the expert.
    """
    if preservation.null_space != "off":
        raise InputError(
            f"{moment.name} is a mixture of experts, and a null space of each expert is not offered; expected "
            "--set preservation.null_space=off"
        )
    for expert, block in enumerate(moment.blocks):
        try:
            check_moment(block)
        except MomentsError as error:
            raise MomentsError(f"{moment.name}, expert {expert}: {error}") from error
    try:
        return _factorised(moment, preservation)
    except InfeasibleError:
        if not preservation.dead_ridge:
            raise
    mean = moment.diagonal().to(torch.float64).mean().item() * preservation.weight
    ridged = replace(preservation, ridge=preservation.ridge + preservation.dead_ridge * mean)
    return replace(_factorised(moment, ridged), given=preservation)


def _block(moment: BlockMoment, preservation: Preservation, expert: int) -> Float[Tensor, "width width"]:
    block = moment.blocks[expert].detach().to(torch.float64, copy=True).mul_(preservation.weight)
    block.diagonal().add_(preservation.ridge)
    return block


def _factorised(moment: BlockMoment, preservation: Preservation) -> PreparedBlocks:
    factors = torch.empty(moment.blocks.shape, dtype=torch.float64, device=moment.device)
    norm = inverse = 0.0
    size = moment.width
    for expert in range(moment.experts):
        block = _block(moment, preservation, expert)
        factor, info = torch.linalg.cholesky_ex(block)
        pivots = factor.diagonal().square() / block.diagonal()
        if info.item() or not bool((pivots > size * torch.finfo(torch.float64).eps).all()):
            ridge = max(1e-4 * preservation.weight * float(moment.diagonal().abs().mean()), 1e-12)  # beside weight · C
            raise InfeasibleError(
                f"{moment.name}: the metric of expert {expert} of {moment.experts}, A = {preservation.weight:g}*C + "
                f"{preservation.ridge:g}*I, is not positive definite: {int(moment.counts.sum())} keys of all experts "
                f"together do not span its {size} directions. Collect more tokens (--set moments.multiple=20), or add "
                f"a ridge (--set preservation.ridge={ridge:.0e})"
            )
        factors[expert] = factor
        norm = max(norm, one_norm(block))
        inverse = max(inverse, inverse_norm(partial(_solved, factor), size, like=factor))
    return PreparedBlocks(moment, preservation, None, factors, norm * inverse)


def _solved(factor: Float[Tensor, "width width"], vector: Vector) -> Vector:
    found: Tensor = torch.cholesky_solve(vector[:, None], factor)
    return found[:, 0]
