"""Tensor shapes that appear in public signatures, as jaxtyping aliases.

Everything is row-wise, batch first: one request, one key, one residual per row.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Keys: TypeAlias = Float[Tensor, "n d_in"]
"""Inputs of the edited down-projection, one per request."""

Residuals: TypeAlias = Float[Tensor, "n d_out"]
"""What the edited map must add at each key."""

DualKeys: TypeAlias = Float[Tensor, "n d_in"]
"""Q of the update RᵀQ."""

Moment: TypeAlias = Float[Tensor, "d_in d_in"]
"""Uncentred second moment E[k kᵀ] of preserved keys."""

Weight: TypeAlias = Float[Tensor, "d_out d_in"]
"""A linear map, output dimension first whatever the module's own layout."""

Hidden: TypeAlias = Float[Tensor, "batch seq d_model"]
"""Hidden states of a right-padded batch."""

TokenIds: TypeAlias = Int[Tensor, "batch seq"]
"""Token ids of a right-padded batch."""

Mask: TypeAlias = Bool[Tensor, "batch seq"]
"""True at real tokens of a right-padded batch."""
