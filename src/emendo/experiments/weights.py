"""What all edits in a model together do to its weights, against what the weights were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.methods import MethodConfig
from emendo.models import ModelAdapter
from emendo.moments import MomentStore, obtain_for_method
from emendo.progress import Progress
from emendo.shapes import Moment
from emendo.solve import frobenius_norm, preservation_cost
from emendo.update import ModelUpdate, merge_layers


@dataclass(frozen=True)
class WeightTotals:
    """Sizes of the unedited weights, to measure sums of updates by.

    Attributes:
        norms: ‖W₀‖_F of every layer.
        moments: C of the layers that a method edits; empty for a baseline.
        costs: tr(W₀ C W₀ᵀ) of the same layers.
    """

    norms: Mapping[int, float]
    moments: Mapping[int, Moment]
    costs: Mapping[int, float]

    @classmethod
    def of(
        cls,
        adapter: ModelAdapter,
        method: MethodConfig | None,
        *,
        seed: int,
        store: MomentStore | None,
        progress: Progress | None,
    ) -> WeightTotals:
        """Measure an unedited model; second moments that are missing are collected.

        Args:
            adapter: The model.
            method: The resolved method; None for a baseline.
            seed: Of self-sampled second moments.
            store: Where they are cached.
            progress: Told about the stage "second moments".
        """
        norms = {layer: float(adapter.weight(layer).double().norm()) for layer in range(adapter.n_layers)}
        if method is None:
            return cls(norms, {}, {})
        moments, _ = obtain_for_method(
            adapter, method.written_layers, method.moments, seed=seed, store=store, progress=progress
        )
        costs = {}
        for layer, moment in moments.items():
            weight = adapter.weight(layer).to(moment)
            costs[layer] = float(((weight @ moment) * weight).sum())
        return cls(norms, moments, costs)

    def measure(self, updates: Sequence[ModelUpdate]) -> list[dict[str, Any]]:
        """‖ΣΔ‖/‖W₀‖ and, where C is known, tr(ΣΔ C ΣΔᵀ)/tr(W₀ C W₀ᵀ) of every edited layer, as JSON values."""
        totals = []
        for part in merge_layers([part for update in updates for part in update.layers]):
            cost = None
            if part.layer in self.moments:
                moment = self.moments[part.layer].cpu()
                cost = preservation_cost(part.residuals, part.dual_keys, moment) / self.costs[part.layer]
            norm = frobenius_norm(part.residuals, part.dual_keys) / self.norms[part.layer]
            totals.append({"layer": part.layer, "relative_norm": norm, "relative_cost": cost})
        return totals
