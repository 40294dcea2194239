"""Run a model with updates as factors beside its weights, each edit at a strength of its own; no weight is written.

ΔW k = Σᵢ rᵢ (qᵢ · k), so an edit is a read vector, a write vector and, at every token, one number between them: how far
it fires. Scaling that number scales the edit, for each row of a batch apart, and gradients see every write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from emendo.models.editable import EditableModel
from emendo.models.experts import RoutedKeys, recording_experts
from emendo.models.hooks import Capture, recording
from emendo.shapes import DualKeys, Residuals


@dataclass
class Written:
    """What factors did in a forward pass, by layer.

    Attributes:
        firing: qᵢ · k at every token, before it is scaled, ``[batch, seq, rows]``.
        outputs: The down-projection's output with what was written, ``[batch, seq, d_model]``.
    """

    firing: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def factored(
    lm: EditableModel,
    factors: Mapping[int, tuple[DualKeys, Residuals]],
    strengths: Float[Tensor, "batch rows"],
    *,
    differentiable: bool = False,
) -> Iterator[Written]:
    """Forward passes inside the context compute with ``W + Rᵀ diag(strength) Q`` in the given layers.

    Args:
        lm: The model, isolated.
        factors: Q and R of each layer, with the same rows in every layer.
        strengths: Of every row of the factors, for every row of the batch.
        differentiable: Keep the graph above the lowest layer, so that gradients of `Written.outputs` can be taken.

    Yields:
        What was fired and written, filled by each pass.
    """
    written = Written()
    routed: dict[int, RoutedKeys] = {}
    batch = len(strengths)

    def hook(layer: int) -> Any:
        dual_keys, residuals = factors[layer]

        def add(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            if layer in routed:
                firing = routed[layer].dot(dual_keys).view(batch, -1, len(dual_keys))
            else:
                keys = args[0].view(batch, -1, args[0].shape[-1])  # OPT lets its MLP see [batch × seq, ·]
                firing = keys.to(dual_keys) @ dual_keys.T
            added = (firing * strengths[:, None].to(firing)) @ residuals
            total = out + added.view(out.shape).to(out)
            if differentiable and not total.requires_grad:
                total.requires_grad_()
            written.firing[layer] = firing.detach()
            written.outputs[layer] = total
            return total

        return add

    handles = [lm.down_projection(layer).register_forward_hook(hook(layer)) for layer in factors]
    mixtures = [layer for layer in factors if lm.mixture(layer) is not None]
    sinks = {lm.down_projection(layer): partial(routed.__setitem__, layer) for layer in mixtures}
    try:
        with recording_experts(sinks):
            yield written
    finally:
        for handle in handles:
            handle.remove()


def stopping(lm: EditableModel, layer: int) -> AbstractContextManager[None]:
    """Forward passes inside the context end after a block, by a `StopForwardError`."""
    return recording(lm, Capture(), stop=layer)
