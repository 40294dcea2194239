"""Updates of random factors for a live model: what tests of files, adapters and checkpoints apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emendo.models import EditableModel
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate


def random_part(lm: EditableModel, layer: int, rank: int, seed: int, scale: float = 0.3) -> LayerUpdate:
    """A layer's update whose entries are about `scale` large."""
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = lm.weight(layer).shape
    return LayerUpdate(
        layer,
        lm.module_name(layer),
        torch.randn(rank, d_out, generator=generator) * scale,
        torch.randn(rank, d_in, generator=generator) / rank**0.5,
    )


def random_update(
    lm: EditableModel, ranks: dict[int, int], earlier: Sequence[ModelUpdate] = (), seed: int = 0, **info: Any
) -> ModelUpdate:
    """An update of the given ranks by layer, on top of earlier ones.

    Args:
        lm: The unedited model.
        ranks: Rows of the factors by layer.
        earlier: Updates that precede it.
        seed: Of the factors.
        info: What it records.
    """
    base = lm.identity()
    parts = tuple(random_part(lm, layer, ranks[layer], seed + 31 * layer) for layer in sorted(ranks))
    return ModelUpdate(parts, base, Predecessors.of(update.id for update in earlier), info)
