"""What the removal changes at the keys of the edits that are still to be worked out: K_m D_mᵀ, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from emendo.shapes import DualKeys, Keys, Residuals
from emendo.updates.update import LayerUpdate


@dataclass
class _Layer:
    """Keys of the later edits of one layer, stacked, and the change of what that layer gives there."""

    keys: Keys
    change: Residuals
    start: dict[int, int]


class MeasuredChange:
    """The change of every later edit's measured value, kept up to date as changes of the weights come in.

    Args:
        later: Position and parts of each later update, in order, all with keys.
    """

    def __init__(self, later: Sequence[tuple[int, Sequence[LayerUpdate]]]) -> None:
        self.changed: set[int] = set()
        """Layers whose weights are not what they were."""
        self._layers: dict[int, _Layer] = {}
        for layer in {part.layer for _, parts in later for part in parts}:
            own = [(position, part) for position, parts in later for part in parts if part.layer == layer]
            keys: list[Keys] = []
            start: dict[int, int] = {}
            rows = 0
            for position, part in own:
                assert part.keys is not None  # checked with the record
                start[position] = rows
                rows += len(part.keys)
                keys.append(part.keys.double().cpu())
            change = torch.zeros(rows, own[0][1].residuals.shape[1], dtype=torch.float64, device="cpu")
            self._layers[layer] = _Layer(torch.cat(keys), change, start)

    def add(self, layer: int, residuals: Residuals, dual_keys: DualKeys) -> None:
        """Add RᵀQ to what has changed at a layer. Edits that are done are changed too, which nobody asks for."""
        self.changed.add(layer)
        if layer in self._layers:
            own = self._layers[layer]
            own.change += (own.keys @ dual_keys.T) @ residuals

    def at(self, position: int, rows: range, layers: Iterable[int]) -> Residuals | float:
        """Σ_m K_m D_mᵀ for some rows of an edit, over some layers; 0 where none of them has changed."""
        total: Residuals | float = 0.0
        for layer in layers:
            own = self._layers[layer]
            first = own.start[position] + rows.start
            total = total + own.change[first : first + len(rows)]
        return total
