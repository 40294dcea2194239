"""From a method's name and a model to every value that will be used, and where each came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from emendo.errors import MethodError
from emendo.methods.catalog import method_named
from emendo.methods.config import MethodConfig, apply_settings
from emendo.methods.presets import layers_by_depth, preset_for
from emendo.models import ModelAdapter


@dataclass(frozen=True)
class ResolvedMethod:
    """A method with every value fixed for one model.

    Attributes:
        config: The values.
        origins: Where each came from, by dotted name.
    """

    config: MethodConfig
    origins: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Name, source, values and origins, as JSON values."""
        return {
            "name": self.config.name,
            "source": self.config.source,
            "settings": self.config.settings(),
            "origins": self.origins,
        }


def resolve_method(
    method: str | MethodConfig,
    adapter: ModelAdapter,
    *,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ResolvedMethod:
    """Fix every value of a method for a model.

    Later sources win: the method's own values, the preset for the model (or the rule of depth), `settings`, `layers`.

    Args:
        method: A name from the catalog, or a config of one's own.
        adapter: The model.
        layers: Edited layers; None takes the preset's.
        settings: Values by dotted name.

    Raises:
        MethodError: Unknown method or setting, or several layers for a method that writes one.
        LayerError: A layer that the model does not have.
    """
    config = method_named(method) if isinstance(method, str) else method
    origins = dict.fromkeys(config.settings(), f"method {config.name}")
    chosen, layer_origin = config.layers, f"method {config.name}"
    if (found := preset_for(config.name, adapter)) is not None:
        model, preset = found
        config = apply_settings(config, preset.settings)
        preset_origin = f"preset for {model}: {preset.source}"
        if not chosen:
            chosen, layer_origin = preset.layers, preset_origin
        origins.update(dict.fromkeys(preset.settings, preset_origin))
    elif not chosen:
        chosen, layer_origin = layers_by_depth(adapter, config.span)
    if settings:
        config = apply_settings(config, settings)
        origins.update(dict.fromkeys(settings, "given (--set)"))
    if layers is not None:
        chosen, layer_origin = tuple(layers), "given (--layers)"
    config = replace(config, layers=tuple(adapter.check_layers(chosen)), span=len(chosen))
    origins["layers"] = origins["span"] = layer_origin
    if config.distribution == "single" and len(config.layers) > 1:
        raise MethodError(
            f"{config.name} writes one layer, found {list(config.layers)}; give one (--layers {config.layers[-1]}) or "
            "spread the edit (--set distribution=even)"
        )
    return ResolvedMethod(config, origins)
