"""Can these keys all be memorized exactly? If not: which requests are in each other's way.

Under equality (s = 0) each key must reach its own residual, which takes linearly independent keys.
Two prompts that are the same up to the end of the subject share a key, up to the noise of the
forward pass, so the test has to allow for that noise. It is spread evenly over the coordinates:
distances are therefore Euclidean here, on keys of length one, and not those of the metric A, which
would magnify the noise in A's small eigenvalues. With a null space only the keys' kept parts count, and
the noise is still that of the whole keys: where a kept part is short, it is noisier for its length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import checked
from emendo.errors import InfeasibleError, InputError, NumericalError
from emendo.shapes import Keys

Gram = Float[Tensor, "n n"]
Tolerances = Float[Tensor, " n"]

_NAMED = 8  # requests named on one line
_LINES = 5  # conflicts described in one message
_COSINE_ROUNDING = 64 * torch.finfo(torch.float64).eps


@checked
def key_tolerance(dtype: torch.dtype) -> float:
    """How near the span of others a key may lie before it counts as dependent on them.

    Half the square root of the dtype's epsilon, relative to the key's length: 1.7e-4 in float32,
    4.4e-2 in bfloat16. Measured on SmolLM2-135M, layer 5, 600 CounterFact prompts: one prompt in
    batches of 1 and of 64 gives keys at most 4.9e-6 apart in float32 and 1.7e-2 in bfloat16, while
    no key is nearer than 2.1e-1 to the span of the keys of the prompts before it.

    Args:
        dtype: What the model computed the keys in, whatever they were cast to since.

    Returns:
        The relative Euclidean distance.
    """
    return 0.5 * math.sqrt(torch.finfo(dtype).eps)


KEY_TOLERANCE = key_tolerance(torch.float32)
"""The tolerance for keys of a float32 model."""

REMEDY = (
    "Leave requests out or spread them over several batches, let those on one subject have one value "
    "(`--set target.shared=subject`), or memorize by least squares: `--method memit` or `--method emmet-published`."
)

KEEP_MORE = " Or keep more dimensions, e.g. with a larger `--set preservation.threshold=VALUE`."


def require_finite_keys(keys: Keys, d_in: int, labels: Sequence[str] | None, what: str = "keys") -> list[str]:
    """Raise unless the keys are a finite [n, d_in] matrix.

    Returns:
        What messages call its rows.
    """
    if keys.ndim != 2 or keys.shape[1] != d_in:
        raise InputError(
            f"The {what} have shape {tuple(keys.shape)}; expected [n, {d_in}], the width of the "
            "second moment. Are they of the same layer?"
        )
    names = _request_names(labels, len(keys))
    bad = (~keys.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        raise NumericalError(
            f"The {what} of {_listed([names[i] for i in bad])} are not finite. Try "
            "`--dtype float32` if the model runs in half precision."
        )
    return names


def require_independent(keys: Keys, names: Sequence[str], tolerance: float, kept: Keys | None = None) -> None:
    """Raise unless all keys are linearly independent beyond the tolerance.

    A key counts as dependent where its distance from the span of the keys before it is at most
    `tolerance` times its length. One Cholesky factorisation of the n×n Gram matrix of unit keys
    finds that out: its diagonal holds those distances.

    Args:
        keys: Float64 keys.
        names: One name per key, for the message.
        tolerance: See `key_tolerance`.
        kept: The keys' coordinates in the null space, where there is one: then these have to be
            independent, by more than `tolerance` times the length of the whole keys.

    Raises:
        InfeasibleError: It names the requests in conflict, in groups, and says what to do.
    """
    d_in, parts = keys.shape[1], keys if kept is None else kept
    n, dimensions = parts.shape
    remedy = REMEDY if kept is None else REMEDY + KEEP_MORE
    if n > dimensions:
        room = f"the layer's keys have d_in = {d_in} coordinates"
        room += "" if kept is None else f" and the null space keeps {dimensions} dimensions of them"
        raise InfeasibleError(
            f"{n} requests ({_listed(names)}) cannot hold with equality in one batch: {room}, so at most "
            f"{dimensions} of them are independent. {remedy}"
        )
    lengths = keys.norm(dim=1)
    zero = (lengths == 0).nonzero()[:, 0].tolist()
    if zero:
        raise InfeasibleError(
            f"The key of {_listed([names[i] for i in zero])} is zero, so no update of this layer "
            f"can change its output there. {remedy}"
        )
    shares = parts.norm(dim=1) / lengths
    outside = (shares <= tolerance).nonzero()[:, 0].tolist()
    if outside:
        raise InfeasibleError(
            f"The key of {_listed([names[i] for i in outside])} has no part in the null space beyond rounding: at most "
            f"{shares[outside].max().item():.1e} of its length lies in the {dimensions} of {d_in} dimensions kept "
            f"(tolerance {tolerance:.1e}), so no update can change the output there. {remedy}"
        )
    unit, tolerances = parts / (shares * lengths)[:, None], tolerance / shares
    gram = unit @ unit.T
    if first_dependent(gram, tolerances) is None:
        return
    inside = "" if kept is None else f" inside the null space ({dimensions} of {d_in} dimensions)"
    raise InfeasibleError(
        "\n".join(
            [
                "These requests cannot all hold with equality, because their keys at this layer "
                f"are not independent{inside} (relative tolerance {tolerance:.1e}):",
                *(f"  {line}" for line in describe_conflicts(gram, names, tolerances)),
                remedy,
            ]
        )
    )


def first_dependent(gram: Gram, tolerances: Tolerances) -> int | None:
    """The first row within its tolerance of the span of the rows before it, or None.

    Args:
        gram: Gram matrix of unit vectors.
        tolerances: Relative distance, one a row.
    """
    cholesky, info = torch.linalg.cholesky_ex(gram)
    end = int(info.item())
    distances = cholesky.diagonal()[: end - 1 if end else None]
    near = (distances <= tolerances[: len(distances)]).nonzero()
    if len(near):
        return int(near[0].item())
    return end - 1 if end else None


def describe_conflicts(gram: Gram, names: Sequence[str], tolerances: Tolerances) -> Iterator[str]:
    """One line per conflict: first the keys that are shared, then combinations of the rest.

    Args:
        gram: Gram matrix of unit vectors.
        names: One name per vector.
        tolerances: Relative distance that counts as none, one a vector.
    """
    # sin² of the angle between two keys; keys that point in opposite directions share a line too. Equal keys have a
    # cosine of 1 only up to rounding, which the square of a float64 model's tolerance is below.
    largest = torch.maximum(tolerances, tolerances[:, None]).square()
    same = 1.0 - gram.square() <= largest.clamp_min(_COSINE_ROUNDING)
    same.fill_diagonal_(True)
    leader = same.int().argmax(dim=1)  # of equals, argmax gives the first
    kept = leader == torch.arange(len(names), device=gram.device)
    groups = [(leader == i).nonzero()[:, 0].tolist() for i in kept.nonzero()[:, 0].tolist()]
    shared = [group for group in groups if len(group) > 1]
    for group in shared[:_LINES]:
        yield f"these requests share a key: {_listed([names[i] for i in group])}"
    if len(shared) > _LINES:
        yield f"and {len(shared) - _LINES} more groups that share a key"
    rest = kept.nonzero()[:, 0]
    for _ in range(_LINES):
        reduced = gram[rest][:, rest]
        row = first_dependent(reduced, tolerances[rest])
        if row is None:
            return
        weights = torch.linalg.solve(reduced[:row, :row], reduced[:row, row]).abs()
        order = weights.argsort(descending=True)
        heavy = rest[order[weights[order] > 1e-3 * weights.max()]].tolist()
        yield (
            f"the key of {names[int(rest[row].item())]} is a combination of those of "
            f"{_listed([names[i] for i in heavy])}"
        )
        rest = torch.cat([rest[:row], rest[row + 1 :]])
    if first_dependent(gram[rest][:, rest], tolerances[rest]) is not None:
        yield "and more such combinations"


def _request_names(labels: Sequence[str] | None, n: int) -> list[str]:
    if labels is None:
        return [f"row {row}" for row in range(n)]
    if len(labels) != n:
        raise InputError(f"Got {len(labels)} labels for {n} keys; expected one label per key.")
    return [str(label) for label in labels]


def _listed(names: Sequence[str]) -> str:
    """The names in a row, cut where nobody would read on."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
