"""How far updates have moved the weights of each layer: the cheapest signs of damage, without a forward pass.

Both figures are of the *total* change since the unedited model, so they grow with every edit even where each single
one is small. ΔW is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from emendo.editing.session import EditSession
from emendo.methods.settings import MomentSettings
from emendo.shapes import Moment
from emendo.solve import BlockMoment, frobenius_norm, preservation_cost
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers


@dataclass(frozen=True)
class LayerChange:
    """What updates together have done to one layer.

    Attributes:
        layer: Index of the block.
        norm_growth: ‖ΔW‖_F / ‖W‖_F of their sum, W unedited.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of their sum: mean squared change of the layer's output on preserved
            keys, relative to the output's own mean square; None where C is not known.
    """

    layer: int
    norm_growth: float
    relative_cost: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class WeightMeter:
    """Measures the change of layers against the unedited model, whose own figures it works out once.

    Args:
        session: Holds the model. Second moments come from its store; those of every layer measured stay in memory.
    """

    def __init__(self, session: EditSession) -> None:
        self._session = session
        self._norms: dict[int, float] = {}
        self._moments: dict[tuple[MomentSettings, int], tuple[Moment | BlockMoment, float]] = {}

    def changes(self, updates: Sequence[ModelUpdate], moments: MomentSettings | None) -> tuple[LayerChange, ...]:
        """What updates together change in every layer that one of them writes.

        Args:
            updates: The updates.
            moments: Whose second moment prices the change; None leaves `relative_cost` out.

        Raises:
            CorpusError: A second moment is missing and its text cannot be read.
            MomentsError: A stored second moment is damaged.
        """
        total = merge_layers([part for update in updates for part in update.layers])
        self.learn([part.layer for part in total], moments)
        return tuple(
            LayerChange(
                layer=part.layer,
                norm_growth=frobenius_norm(part.residuals, part.dual_keys) / self._norms[part.layer],
                relative_cost=None if moments is None else self._cost(part, moments),
            )
            for part in total
        )

    def _cost(self, part: LayerUpdate, settings: MomentSettings) -> float:
        moment, own = self._moments[settings, part.layer]
        part = part.to(moment.device)
        return preservation_cost(part.residuals, part.dual_keys, moment) / own

    def learn(self, layers: Sequence[int], settings: MomentSettings | None) -> None:
        """Work out ‖W‖ and tr(W C Wᵀ) of layers not seen before; `changes` does it where nobody has.

        Args:
            layers: The layers.
            settings: As `moments` of `changes`.

        Raises:
            CorpusError: A second moment is missing and its text cannot be read.
            MomentsError: A stored second moment is damaged.
        """
        session = self._session
        if settings is not None and (missing := [layer for layer in layers if (settings, layer) not in self._moments]):
            for layer, moment in session.second_moments(missing, settings)[0].items():
                self._moments[settings, layer] = moment, session.output_power(layer, moment)
        if unknown := [layer for layer in layers if layer not in self._norms]:
            for layer in unknown:
                weight = session.lm.base_weight(layer)
                self._norms[layer] = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
