"""What an update must leave alone: the preservation metric A = f(C) + H.

``tr(Δ A Δᵀ)`` is the price of an update Δ. ``C`` is the second moment of the keys to preserve, so
``tr(Δ C Δᵀ)`` is the mean squared change of the layer's output on them; the ridge prices the
update's own size; the history ``H`` prices what it does to earlier edits. A null space makes some
directions priceless: an update does not use them at all (see `null_space.py`).
"""

from __future__ import annotations

import math

import torch

from emendo.arguments import Measured, checked
from emendo.errors import InputError, MomentsError
from emendo.shapes import Keys, Moment
from emendo.solve.settings import Preservation

SYMMETRY_TOLERANCE = 1e-6
"""Largest |M − Mᵀ| allowed, relative to the largest |M|: float32 sums stay below it."""

_ROWS = 1024  # rows checked at a time, so that checking 14336² entries needs no second copy


def preservation_metric(preservation: Preservation, moment: Moment, history: Moment | None = None) -> Moment:
    """The metric A = weight · C + ridge · I + H, in all directions: `prepare` leaves out those that are closed.

    Args:
        preservation: f.
        moment: C, the mean second moment, in any floating dtype. With ``weight=0`` only its size
            and device are read, so that any square matrix will do.
        history: H, as `extend_history` makes it; None where no edit came before.

    Returns:
        A new float64 matrix on the moment's device. Of its two triangles the solver reads the
        lower one only.

    Raises:
        MomentsError: The moment is not a finite symmetric matrix.
        InputError: The history is not one, or has another size.
    """
    if preservation.weight == 0.0:
        _check_square(moment, "second moment", MomentsError)
        metric = torch.zeros(moment.shape, dtype=torch.float64, device=moment.device)
    else:
        check_moment(moment)
        metric = moment.detach().to(torch.float64, copy=True).mul_(preservation.weight)
    metric.diagonal().add_(preservation.ridge)
    if history is not None:
        check_history(history, moment)
        metric.add_(history.detach().to(metric))
    return metric


@checked(sizes=False)
def extend_history(history: Moment | None, keys: Keys, *, weight: Measured = 1.0) -> Moment:
    """Make edited keys part of what later edits preserve: H + weight · KᵀK.

    With ``weight = 1/s`` a later solve at the same s counts earlier requests exactly as its own
    (sequential MEMIT). Batches solved one after another at one s and one f(C), each with residuals
    measured on the model as the ones before left it, then add up to the one-shot solution, as long
    as the earlier keys stay what they were. Under equality (s = 0) no finite weight does that: the
    sum tends to the one-shot solution as the weight grows, and 1 is the convention.

    Args:
        history: H so far, or None.
        keys: The keys that were edited.
        weight: How much each of them counts, more than 0.

    Returns:
        A new float64 matrix; the one passed in is not changed.

    Raises:
        InputError: The weight is not a positive finite number, or the sizes differ.

    Source: the sequential MEMIT of AlphaEdit (arXiv 2410.02355), term K_p K_pᵀ.
    """
    check_history_weight(weight)
    if keys.ndim != 2:
        raise InputError(f"The keys are {_size(keys)}; expected [n, d_in].")
    keys = keys.detach().to(torch.float64)
    if history is None:
        return keys.T @ keys * weight
    if history.shape != (keys.shape[1], keys.shape[1]):
        raise InputError(
            f"The history is {_size(history)} but the keys are {_size(keys)}; expected keys of the same layer."
        )
    return torch.addmm(history.detach().to(keys), keys.T, keys, alpha=weight)


def check_history_weight(weight: float) -> None:
    """Raise InputError unless it is a positive finite number."""
    if not (math.isfinite(weight) and weight > 0.0):
        raise InputError(f"The history weight is {weight}; expected a finite number above 0.")


def check_moment(moment: Moment) -> None:
    """Raise MomentsError unless C is a finite symmetric matrix."""
    _check_symmetric(moment, "second moment", MomentsError, "collect it again with `emendo moments collect`")


def check_history(history: Moment, moment: Moment) -> None:
    """Raise InputError unless H is a finite symmetric matrix of C's size."""
    _check_symmetric(history, "history", InputError, "build it with `extend_history`")
    if history.shape != moment.shape:
        raise InputError(
            f"The history is {_size(history)} but the second moment is {_size(moment)}. Pass the history of this layer."
        )


def _check_square(matrix: Moment, name: str, error: type[InputError]) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise error(f"The {name} is {_size(matrix)}; expected a square [d_in, d_in] matrix.")


def _check_symmetric(matrix: Moment, name: str, error: type[InputError], remedy: str) -> None:
    """Raise `error` unless the matrix is a square, finite, symmetric float matrix."""
    _check_square(matrix, name, error)
    if not matrix.is_floating_point():
        raise error(f"The {name} has dtype {matrix.dtype}; expected a floating dtype.")
    largest = asymmetry = 0.0
    for start in range(0, matrix.shape[0], _ROWS):
        rows = matrix[start : start + _ROWS].detach()
        columns = matrix[:, start : start + _ROWS].detach().T
        largest = max(largest, rows.abs().max().item())
        asymmetry = max(asymmetry, (rows - columns).abs().max().item())
        if not rows.isfinite().all():
            raise error(f"The {name} holds values that are not finite; {remedy}.")
    if asymmetry > SYMMETRY_TOLERANCE * largest:
        raise error(
            f"The {name} is not symmetric: entries differ from their mirror by up to "
            f"{asymmetry:.1e}, with entries up to {largest:.1e}; {remedy}."
        )


def _size(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"
