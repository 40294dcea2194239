"""What can be said of edits without a model: how far each fires at the others' keys, how large and focused it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.attribution.edits import EditSet
from emendo.errors import InputError
from emendo.shapes import DualKeys, Moment, Residuals


def cross_firing(edits: EditSet, layer: int) -> Float[Tensor, "edits keys"]:
    """M with ``M[i, j] = qᵢ · kⱼ``: how far edit i fires at the key of edit j; the identity where equality holds.

    For updates that were applied one after another, a later edit's row tells which earlier ones it disturbs.

    Raises:
        InputError: The keys are not known, or an edit stands for a whole update.
    """
    if edits.keys is None or layer not in edits.keys:
        raise InputError(
            f"the keys that were written at layer {layer} are not known; expected updates of a method that solves for "
            "keys, not folded or shaped afterwards"
        )
    return edits.factors[layer][0].double() @ edits.keys[layer].double().T


def singular_values(dual_keys: DualKeys, residuals: Residuals) -> Float[Tensor, " rank"]:
    """Singular values of ``RᵀQ`` from its factors, largest first: two QR and the SVD of a matrix of n × n.

    Args:
        dual_keys: Q.
        residuals: R.
    """
    _, right = torch.linalg.qr(dual_keys.double().T)
    _, left = torch.linalg.qr(residuals.double().T)
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


@dataclass(frozen=True)
class Reading:
    """How an edit reads preserved text at one layer.

    Attributes:
        base_rate: Root mean square of its firing on preserved text, √(qᵀCq).
        cost: Its own part of the preservation cost tr(ΔW C ΔWᵀ), ‖r‖² qᵀCq.
    """

    base_rate: Float[Tensor, " rows"]
    cost: Float[Tensor, " rows"]


def reading(edits: EditSet, layer: int, moment: Moment) -> Reading:
    """How every row reads preserved text: E[a²] = qᵀCq, so a firing a is unusual as far as a / √(qᵀCq) is large.

    Args:
        edits: The edits.
        layer: Layer.
        moment: C of the layer, ``[d_in, d_in]``.
    """
    dual_keys, residuals = edits.factors[layer]
    q = dual_keys.double()
    squared = ((q @ moment.to(q)) * q).sum(dim=1).clamp_min(0)
    return Reading(squared.sqrt(), residuals.double().square().sum(dim=1) * squared)


def stable_rank(values: Float[Tensor, " rank"]) -> float:
    """‖ΔW‖_F² / ‖ΔW‖₂²: how many directions carry an update."""
    return float(values.square().sum() / values[0].square()) if len(values) and values[0] > 0 else 0.0
