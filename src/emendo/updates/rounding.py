"""What rounding edited weights to a model's dtype leaves of an update."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from emendo.errors import EmendoWarning
from emendo.shapes import Keys, Residuals, Weight
from emendo.updates.update import LayerUpdate

LEAST_KEPT = 0.95
"""Share of an edit that rounding has to leave; below it the user is told."""


def rounding(weight: Weight, update: LayerUpdate, dtype: torch.dtype) -> Weight:
    """What rounding adds to ΔW: cast(W + ΔW) − cast(W) − ΔW, ``[d_out, d_in]``.

    Args:
        weight: W, in the best precision known.
        update: ΔW as factors.
        dtype: Of the weights that a model computes with.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    delta = update.to(weight.device).delta().to(weight)
    return (weight + delta).to(dtype).to(weight) - weight.to(dtype).to(weight) - delta


def kept_of(update: LayerUpdate, lost: Weight, keys: Keys | None, dtype: torch.dtype) -> float | None:
    """What rounding leaves of an update: ⟨ΔW' k, ΔW k⟩ / ⟨ΔW k, ΔW k⟩ at the key where that is least; ΔW' is rounded.

    None for float32 and finer: what is lost there is no visible part of a model, and there is nothing finer to go to.

    Args:
        update: ΔW as factors.
        lost: ΔW' − ΔW.
        keys: Where to look; None: the same of the matrices themselves.
        dtype: That it was rounded to.
    """
    if dtype.itemsize >= torch.float32.itemsize:
        return None
    if keys is None or not len(keys):
        delta = update.to(lost.device).delta().double()
        size = float(delta.square().sum())
        return 1 + float((lost.double() * delta).sum()) / size if size else None
    given = update.to(lost.device).at(keys.to(lost.device))
    sizes = given.square().sum(dim=1)
    shares = 1 + (at(lost, keys) * given).sum(dim=1) / sizes
    return float(shares[sizes > 0].min()) if bool((sizes > 0).any()) else None


def rounding_told(kept: Mapping[int, float | None], dtype: torch.dtype) -> str:
    """Where rounding to a dtype loses a visible part of an update, and what to do; empty where it does not.

    Args:
        kept: What it leaves in each layer.
        dtype: The dtype.
    """
    eaten = {layer: share for layer, share in kept.items() if share is not None and share < LEAST_KEPT}
    if not eaten:
        return ""
    layer = min(eaten, key=lambda one: eaten[one])
    name = str(dtype).removeprefix("torch.")
    return (
        f"rounding to {name} loses part of this edit: of what it writes, layer {layer} keeps {eaten[layer]:.0%} in "
        f"the weakest fact ({len(eaten)} layer(s) keep less than {LEAST_KEPT:.0%}). Keep it as an adapter over the "
        "unedited base (emendo export peft), or load and write the model in float32 (--dtype float32)"
    )


def tell_of_rounding(kept: Mapping[int, float | None], dtype: torch.dtype) -> None:
    """Warn where rounding to a dtype loses a visible part of an update.

    Args:
        kept: What it leaves in each layer.
        dtype: The dtype.
    """
    if told := rounding_told(kept, dtype):
        warnings.warn(told, EmendoWarning, stacklevel=2)


def at(lost: Weight, keys: Keys) -> Residuals:
    """What a matrix gives at keys, in float64."""
    return (keys.to(lost) @ lost.T).double()
