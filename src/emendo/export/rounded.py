"""An edited layer on the grid of its base, and what rounding left of the edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from emendo.errors import ExportError
from emendo.shapes import Moment, Weight
from emendo.solve.grid_rounding import Grid, round_nearest, round_with_feedback, rounding_metric
from emendo.updates.update import LayerUpdate

Rounding = Literal["feedback", "nearest"]


@dataclass(frozen=True)
class RoundedLayer:
    """What rounding did to one layer.

    Attributes:
        layer: Index of the block.
        kind: How its levels are kept.
        kept: ⟨ΔW' k, ΔW k⟩ / ⟨ΔW k, ΔW k⟩ over the keys of the edit: 1 where all of it is left.
        moved: Share of the entries whose level changed.
        drift: tr(E C Eᵀ) / tr(W C Wᵀ) of what rounding added, E = W' − W − ΔW: on preserved keys.
    """

    layer: int
    kind: str
    kept: float
    moved: float
    drift: float


def rounded(
    part: LayerUpdate,
    weight: Weight,
    target: Weight,
    grid: Grid,
    *,
    kind: str,
    moments: Mapping[int, Moment],
    rounding: Rounding,
) -> tuple[Int[Tensor, "d_out d_in"], RoundedLayer]:
    """The level of every entry of an edited layer, and what rounding did.

    Args:
        part: The edit, with its keys.
        weight: W of the base.
        target: W + ΔW.
        grid: What the layer may become.
        kind: How its levels are kept.
        moments: C by layer.
        rounding: By error feedback, or to the nearest level.

    Raises:
        ExportError: Keys or C are missing.
    """
    keys, moment = part.keys, moments.get(part.layer)
    if keys is None or moment is None:
        what = "keys, which were dropped from the update" if keys is None else "second moment (moments=)"
        raise ExportError(f"rounding layer {part.layer} in place needs its {what}; plan the edit again")
    if rounding == "nearest":
        index = round_nearest(target, grid)
    else:
        index = round_with_feedback(target, grid, rounding_metric(moment.to(target.device), keys))
    found, C, keys = grid.values(index, slice(None)), moment.to(target.device).double(), keys.to(target.device).double()
    wanted, given = keys @ (target - weight).double().T, keys @ (found - weight).double().T
    error, own = (found - target).double(), weight.double()
    return index, RoundedLayer(
        layer=part.layer,
        kind=kind,
        kept=float((wanted * given).sum() / wanted.square().sum()),
        moved=float((index != round_nearest(weight, grid)).float().mean()),
        drift=float((error @ C * error).sum() / (own @ C * own).sum()),
    )
