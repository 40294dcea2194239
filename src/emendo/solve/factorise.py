"""Factorise the preservation metric of a layer, dense or of a mixture of experts: once for all solves of the layer."""

from __future__ import annotations

from emendo.arguments import checked
from emendo.shapes import Moment
from emendo.solve.block_moment import BlockMoment
from emendo.solve.blocks import prepare_blocks
from emendo.solve.metric import PreparedLayer, prepare_dense
from emendo.solve.settings import Preservation


@checked(sizes=False)
def prepare(
    moment: Moment | BlockMoment, preservation: Preservation, *, history: Moment | None = None
) -> PreparedLayer:
    """Factorise a layer's preservation metric in float64.

    It costs d_in³/3 operations; with a null space also the eigendecomposition of C, more than ten times
    that, which `PreparedLayer.with_history` reuses.

    Args:
        moment: C, the mean second moment of the layer's keys, or its blocks (`solve.blocks`). Its device is where all
            solves run.
        preservation: f.
        history: H from earlier edits, see `extend_history`.

    Returns:
        The factorised metric, to be passed to `solve` for every batch of the layer.

    Raises:
        MomentsError: The moment is not a finite symmetric matrix.
        InputError: The history is not one, or has another size.
        InfeasibleError: The metric is not positive definite beyond rounding, as when C was
            collected on fewer tokens than d_in, or the null space is empty. No jitter is added but what
            `Preservation.dead_ridge` asks for, no pseudo-inverse taken.
    """
    if isinstance(moment, BlockMoment):
        return prepare_blocks(moment, preservation).with_history(history)
    return prepare_dense(moment, preservation, history)
