"""How a residual at the last edited layer is spread over the edited layers.

A target is searched at the last layer. What is still missing there is measured anew before each layer is
written, and the layer takes a share of it: the share assumes that what is written passes through the residual
stream unchanged.
"""

from __future__ import annotations

from typing import Literal

from emendo.errors import MethodError

Distribution = Literal["single", "even"]


def share(distribution: Distribution, position: int, n_layers: int) -> float:
    """Part of the missing residual that the layer at `position` (from 0, ascending) of `n_layers` takes.

    Args:
        distribution: ``"single"`` (one layer takes all) or ``"even"`` (1/(L−i): what is missing is divided by the
            number of layers still to be written, so the last takes the whole rest).
        position: Index of the layer among the edited ones.
        n_layers: Number of edited layers.

    Raises:
        MethodError: ``"single"`` with several layers.

    Source: MEMIT (arXiv 2210.07229) eq. 20.
    """
    if distribution == "single" and n_layers != 1:
        raise MethodError(
            f"distribution 'single' writes one layer, found {n_layers}; give one layer (--layers 5) or "
            "--set distribution=even"
        )
    return 1 / (n_layers - position)
