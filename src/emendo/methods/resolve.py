"""From a method and a model to every value that will be used, and where each came from.

Presets, and what a family of models asks for, are for methods of the catalog as they stand there. A config of one's own
is taken by its word: every value that it has was chosen, also one that an edit in a ledger was made with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from emendo.errors import MethodError
from emendo.methods.catalog import METHODS, method_named
from emendo.methods.config import MethodConfig, apply_settings
from emendo.methods.effects import check_effects
from emendo.methods.presets import layers_by_depth, preset_for
from emendo.models.architecture import has_dead_units

if TYPE_CHECKING:
    from emendo.models import ModelAdapter

_DEAD_RIDGE = 1e-4

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
        """Name, source, deviations, values and origins, as JSON values."""
        return {
            "name": self.config.name,
            "source": self.config.source,
            "deviations": list(self.config.deviations),
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
        method: A name from the catalog, or a config. One that is not its catalog's entry gets no preset and no change
            for the model's family: its values stand. Without layers it gets those of the rule of depth.
        adapter: The model.
        layers: Edited layers; None takes the config's, or the preset's.
        settings: Values by dotted name.

    Raises:
        MethodError: Unknown method or setting, values that exclude each other, a given setting that changes nothing,
            or several layers for a method that writes one.
        LayerError: A layer that the model does not have.
    """
    config = method_named(method) if isinstance(method, str) else method
    origins = _own_origins(config)
    if config == METHODS.get(config.name):
        config = _with_preset(config, adapter, origins)
        if adapter.spec.mlp_normed:
            config = _for_normed_mlp(config, origins)
        if has_dead_units(getattr(adapter, "config", None)):
            config = _for_dead_keys(config, origins)
    if settings:
        config = apply_settings(config, settings)
        origins.update(dict.fromkeys(settings, "given (--set)"))
        check_effects(config, settings)
    config = _with_layers(config, adapter, layers, origins)
    if config.distribution == "single" and len(config.layers) > 1:
        raise MethodError(
            f"{config.name} writes one layer, found {list(config.layers)}; give one (--layers {config.layers[-1]}) or "
            "spread the edit (--set distribution=even)"
        )
    if adapter.spec.mlp_normed:
        _check_for_normed_mlp(config, adapter)
    return ResolvedMethod(config, origins)


def _own_origins(config: MethodConfig) -> dict[str, str]:
    """Where a config's own values come from: the method of its name, or whoever changed them."""
    values = config.settings()
    named = METHODS[config.name].settings() if config.name in METHODS else values
    return {
        name: f"method {config.name}" if value == named.get(name) else "given (config)"
        for name, value in values.items()
    }


def _with_preset(config: MethodConfig, adapter: ModelAdapter, origins: dict[str, str]) -> MethodConfig:
    """A method of the catalog with the settings that are known for the model."""
    found = preset_for(config, adapter)
    if found is None:
        return config
    preset, origin = found
    config = apply_settings(config, preset.settings)
    origins.update(dict.fromkeys(preset.settings, origin))
    if config.layers:
        return config
    origins["layers"] = origin
    return replace(config, layers=preset.layers)


def _with_layers(
    config: MethodConfig, adapter: ModelAdapter, layers: Sequence[int] | None, origins: dict[str, str]
) -> MethodConfig:
    """The method with layers of the model: those given, its own, or those of the rule of depth."""
    if layers is not None:
        chosen, origin = tuple(layers), "given (--layers)"
    elif config.layers:
        chosen, origin = config.layers, origins["layers"]
    else:
        chosen, origin = layers_by_depth(adapter, config.span)
    origins["layers"] = origins["span"] = origin
    return replace(config, layers=tuple(adapter.check_layers(chosen)), span=len(chosen))


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


def _for_dead_keys(config: MethodConfig, origins: dict[str, str]) -> MethodConfig:
    """The method on a model some of whose units may never fire: C alone prices an update that uses them at nothing.

    The ridge is added only where C is singular. A ten-thousandth of the mean unit's power is far below what any live
    direction of the keys is priced at that matters to the update, and far above float64 rounding.
    """
    if config.preservation.weight == 0 or config.preservation.null_space != "off":
        return config
    origins["preservation.dead_ridge"] = "family: units of a ReLU may never fire, and C would price them at nothing"
    return apply_settings(config, {"preservation.dead_ridge": _DEAD_RIDGE})


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
