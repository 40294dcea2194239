"""What can be said of edits without a model: how far each fires at the others' keys, how large and focused it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from emendo.arguments import checked
from emendo.attribution.edits import EditSet
from emendo.errors import InputError


@checked
def cross_firing(edits: EditSet, layer: int) -> Float[np.ndarray, "edits keys"]:
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
    found: np.ndarray = _exact(edits.factors[layer][0]) @ _exact(edits.keys[layer]).T
    return found


def singular_values(dual_keys: Any, residuals: Any) -> Float[np.ndarray, " rank"]:
    """Singular values of ``RᵀQ`` from its factors, largest first: two QR and the SVD of a matrix of n × n.

    Args:
        dual_keys: Q, ``[n, d_in]``, an array or a tensor on the CPU.
        residuals: R, ``[n, d_out]``.
    """
    right: Any = np.linalg.qr(_exact(dual_keys).T, mode="r")
    left: Any = np.linalg.qr(_exact(residuals).T, mode="r")
    values: np.ndarray = np.linalg.svd(np.asarray(left @ right.T), compute_uv=False)
    return values


def norm(dual_keys: Any, residuals: Any) -> float:
    """‖RᵀQ‖_F from its factors: ‖RᵀQ‖² = Σ (Q Qᵀ) ∘ (R Rᵀ).

    Args:
        dual_keys: Q, ``[n, d_in]``.
        residuals: R, ``[n, d_out]``.
    """
    q, r = _exact(dual_keys), _exact(residuals)
    return float(np.sqrt(max(0.0, float(((q @ q.T) * (r @ r.T)).sum()))))


@dataclass(frozen=True)
class Reading:
    """How an edit reads preserved text at one layer.

    Attributes:
        base_rate: Root mean square of its firing on preserved text, √(qᵀCq).
        cost: Its own part of the preservation cost tr(ΔW C ΔWᵀ), ‖r‖² qᵀCq.
    """

    base_rate: Float[np.ndarray, " rows"]
    cost: Float[np.ndarray, " rows"]


def reading(edits: EditSet, layer: int, moment: Any) -> Reading:
    """How every row reads preserved text: E[a²] = qᵀCq, so a firing a is unusual as far as a / √(qᵀCq) is large.

    Args:
        edits: The edits.
        layer: Layer.
        moment: C of the layer, ``[d_in, d_in]``, an array or a tensor on the CPU.
    """
    if layer not in edits.factors:
        raise InputError(f"these edits do not write layer {layer}; expected one of {edits.layers} (layer=)")
    dual_keys, residuals = edits.factors[layer]
    q = _exact(dual_keys)
    squared = np.maximum(((q @ _exact(moment)) * q).sum(axis=1), 0.0)
    return Reading(np.sqrt(squared), np.square(_exact(residuals)).sum(axis=1) * squared)


def base_rates(edits: EditSet, moments: dict[int, Any]) -> Float[np.ndarray, " edits"]:
    """Most that the root mean square of every edit's firing on preserved text can be; NaN for a whole update.

    A firing is the mean over the layers that an edit writes, and layers are not independent: √(mean over layers of
    qᵀCq) bounds it, and is it for an edit of one layer. So z = firing / base rate is at least what it says.

    Args:
        edits: The edits.
        moments: C of every written layer.
    """
    total, layers = np.zeros(len(edits.edits)), np.zeros(len(edits.edits))
    for layer in edits.layers:
        wrote = (edits.factors[layer][1] != 0).any(axis=1)
        np.add.at(total, edits.owner, np.where(wrote, np.square(reading(edits, layer, moments[layer]).base_rate), 0.0))
        np.add.at(layers, edits.owner, wrote)
    rates: np.ndarray = np.sqrt(total / np.maximum(layers, 1))
    rates[[edit.whole for edit in edits.edits]] = np.nan
    return rates


def stable_rank(values: Float[np.ndarray, " rank"]) -> float:
    """‖ΔW‖_F² / ‖ΔW‖₂²: how many directions carry an update."""
    return float(np.square(values).sum() / values[0] ** 2) if len(values) and values[0] > 0 else 0.0


def _exact(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
