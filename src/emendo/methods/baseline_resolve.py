"""From a baseline and a model to every value that will be used, and where each came from.

As for methods, presets are for baselines of the catalog as they stand there; a config of one's own stands as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from emendo.methods.baseline_config import BaselineConfig, apply_baseline_settings
from emendo.methods.baseline_presets import UNTUNED, baseline_preset
from emendo.methods.baselines import BASELINES, baseline_layers

if TYPE_CHECKING:
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
        layers: Trained layers; None takes the preset's, or the baseline's own (`baseline_layers`).
        settings: Values by dotted name, such as ``{"fine_tune.steps": 10}``.

    Raises:
        MethodError: Unknown setting, a value that cannot be used, or layers for a baseline that changes no weights.
        LayerError: A layer that the model does not have.
    """
    own = dict.fromkeys(config.settings(), f"baseline {config.name}")
    published: dict[str, str] = {}
    if config == BASELINES.get(config.name):
        config, published = _with_preset(config, adapter)
    given = settings or {}
    config = apply_baseline_settings(config, given)
    chosen, layer_origin = baseline_layers(adapter, config, layers)
    if layers is None:
        layer_origin = published.get("layers", layer_origin)
    told = {**own, **published, **dict.fromkeys(given, "given (--set)")}
    return ResolvedBaseline(replace(config, layers=chosen), chosen, told | {"layers": layer_origin})


def _with_preset(config: BaselineConfig, adapter: ModelAdapter) -> tuple[BaselineConfig, dict[str, str]]:
    """A baseline of the catalog with what is known for the model, and the origins of these values."""
    found = baseline_preset(config, adapter)
    if found is None:
        return config, UNTUNED.get(config.name, {})
    preset, origin = found
    config = replace(apply_baseline_settings(config, preset.settings), layers=preset.layers)
    return config, dict.fromkeys((*preset.settings, "layers"), origin)
