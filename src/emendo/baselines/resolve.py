"""From a baseline and a model to every value that will be used, and where each came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.baselines.catalog import baseline_layers
from emendo.baselines.config import BaselineConfig, apply_baseline_settings
from emendo.models import ModelAdapter


@dataclass(frozen=True)
class ResolvedBaseline:
    """A baseline with every value fixed for one model.

    Attributes:
        config: The values.
        layers: Trained layers, ascending; none where no weights change.
        origins: Where each came from, by dotted name.
    """

    config: BaselineConfig
    layers: tuple[int, ...]
    origins: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Name, source, deviations, values and origins, as JSON values."""
        described = self.config.to_dict()
        described["settings"] = {"layers": list(self.layers), **described["settings"]}
        return {**described, "origins": self.origins}


def resolve_baseline(
    config: BaselineConfig,
    adapter: ModelAdapter,
    *,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ResolvedBaseline:
    """Fix every value of a baseline for a model.

    Args:
        config: The baseline.
        adapter: The model.
        layers: Trained layers; None takes the baseline's own (`baseline_layers`).
        settings: Values by dotted name, such as ``{"fine_tune.steps": 10}``.

    Raises:
        MethodError: Unknown setting, a value that cannot be used, or layers for a baseline that changes no weights.
        LayerError: A layer that the model does not have.
    """
    origins = dict.fromkeys(config.settings(), f"baseline {config.name}")
    if settings:
        config = apply_baseline_settings(config, settings)
        origins.update(dict.fromkeys(settings, "given (--set)"))
    chosen, layer_origin = baseline_layers(adapter, config, layers)
    return ResolvedBaseline(config, chosen, {"layers": layer_origin, **origins})
