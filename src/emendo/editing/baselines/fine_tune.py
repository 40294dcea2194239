"""Constrained fine-tuning (FT-L): the down-projection of one layer, or a few, with every entry's change bounded.

ΔW is trained beside the weight, which is never written: a hook adds ``ΔW k`` to the down-projection's output. In
exact arithmetic that is training the weight itself, and steps far below the spacing of bfloat16 are not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from emendo.editing.baselines.training import TrainingTrace, train
from emendo.methods.baselines import FineTuneSettings
from emendo.models import EditableModel
from emendo.progress import Progress
from emendo.requests import EditRequest
from emendo.shapes import Weight
from emendo.updates.update import LayerUpdate


def fine_tune(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    settings: FineTuneSettings,
    layers: Sequence[int],
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[tuple[LayerUpdate, ...], TrainingTrace]:
    """Train the down-projections of `layers` jointly on all requests.

    Call through `fit_baseline`, which isolates the model. Nothing here is random, whatever the seed.

    Returns:
        Updates whose factors are the identity ``[d_out, d_out]`` and ΔW ``[d_out, d_in]``, and the trace.

    Raises:
        NumericalError: A loss is not finite.

    Source: FT-L of ROME (arXiv 2202.05262, appendix E.1), whose bound ‖ΔW‖_∞ ≤ ε is that of arXiv 2012.00363.
    """
    with _trained_beside(lm, layers) as deltas:

        def project() -> None:
            if settings.max_change is not None:
                for delta in deltas.values():
                    delta.detach().clamp_(-settings.max_change, settings.max_change)

        trace = train(lm, requests, list(deltas.values()), settings, after_step=project, progress=progress)
    updates = tuple(
        LayerUpdate(
            layer=layer,
            module=lm.module_name(layer),
            residuals=torch.eye(len(delta)),
            dual_keys=delta.detach().float().cpu(),
        )
        for layer, delta in deltas.items()
    )
    return updates, trace


@contextmanager
def _trained_beside(lm: EditableModel, layers: Sequence[int]) -> Iterator[dict[int, Weight]]:
    """A zero ΔW for each layer, in float32 or better, that forward passes inside the context add to the weight."""
    deltas: dict[int, Weight] = {}
    handles = []
    try:
        for layer in layers:
            weight = lm.weight(layer)
            precision = torch.promote_types(weight.dtype, torch.float32)
            deltas[layer] = torch.zeros(weight.shape, dtype=precision, device=weight.device, requires_grad=True)
            handles.append(lm.down_projection(layer).register_forward_hook(_adding(deltas[layer])))
        yield deltas
    finally:
        for handle in handles:
            handle.remove()


def _adding(delta: Weight) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds ΔW k to a linear map's output, rounded once."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        added = nn.functional.linear(args[0].to(delta.dtype), delta)
        return (out.to(delta.dtype) + added).to(out.dtype)

    return hook
