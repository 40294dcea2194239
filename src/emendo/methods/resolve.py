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

_PASSTHROUGH = ("even", "sqrt", "optimal")
"""Distributions that divide one residual over layers."""


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
    if (found := preset_for(config, adapter)) is not None:
        model, preset = found
        config = apply_settings(config, preset.settings)
        preset_origin = f"preset for {model}: {preset.source}"
        if not chosen:
            chosen, layer_origin = preset.layers, preset_origin
        origins.update(dict.fromkeys(preset.settings, preset_origin))
    elif not chosen:
        chosen, layer_origin = layers_by_depth(adapter, config.span)
    if adapter.spec.mlp_normed:
        config = _for_normed_mlp(config, origins)
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
    if adapter.spec.mlp_normed:
        _check_for_normed_mlp(config, adapter)
    return ResolvedMethod(config, origins)


def _for_normed_mlp(config: MethodConfig, origins: dict[str, str]) -> MethodConfig:
    """The method on a family whose MLP output is normed before it joins the residual stream.

    There ΔW k is not what the stream gains, so targets are MLP outputs, and what one layer writes is no part of what
    another layer's MLP has to give: every layer aims at a value of its own.
    """
    changed: dict[str, Any] = {"target.site": "mlp_out"}
    if config.distribution in _PASSTHROUGH:
        changed["distribution"] = "replay"
    origins.update(dict.fromkeys(changed, "family: the MLP's output is normed before it joins the residual stream"))
    return apply_settings(config, changed)


def _check_for_normed_mlp(config: MethodConfig, adapter: ModelAdapter) -> None:
    if config.target.site != "mlp_out":
        raise MethodError(
            f"target.site={config.target.site}: {adapter.spec.model_type} norms its MLP's output before it joins the "
            "residual stream, so an edit cannot reach a target there; leave it out, or --set target.site=mlp_out"
        )
    if config.distribution in _PASSTHROUGH:
        raise MethodError(
            f"distribution={config.distribution} divides one residual over layers, and {adapter.spec.model_type} norms "
            "its MLPs' outputs; expected single, ends or replay (--set distribution=replay)"
        )
