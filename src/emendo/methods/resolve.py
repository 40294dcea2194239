"""From a method and a model to every value that will be used, and where each came from.

Presets, and what a family of models asks for, apply to methods of the catalogue as they are there, also if a file of
settings starts from one. A changed config keeps its own values, such as those that an edit in a ledger was made with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from emendo.arguments import checked
from emendo.methods.catalog import CATALOGUE, METHODS, method_named
from emendo.methods.config import BaselineConfig, Method, MethodConfig, apply_settings, read_settings
from emendo.methods.files import MethodFile, is_method_file, read_method_file
from emendo.methods.presets import UNTUNED, preset_for

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView

_LAMBDA = {"preservation.weight", "preservation.ridge", "memorization.s"}
"""Settings that say how firmly an edit holds, in numbers: whoever gives one means it."""

C = TypeVar("C", bound=Method, covariant=True)


@dataclass(frozen=True)
class ResolvedMethod(Generic[C]):
    """A method or baseline with every value fixed for one model.

    Attributes:
        config: The values.
        origins: Where each came from, by dotted name.
    """

    config: C
    origins: dict[str, str]

    @property
    def layers(self) -> tuple[int, ...]:
        """Edited layers, ascending; none where no weights change."""
        return self.config.layers

    def on_engine(self) -> ResolvedMethod[MethodConfig] | None:
        """Itself, if it is a method of the engine; None for a baseline, which trains and has no second moment."""
        return cast(ResolvedMethod[MethodConfig], self) if isinstance(self.config, MethodConfig) else None

    def as_baseline(self) -> ResolvedMethod[BaselineConfig] | None:
        """Itself, if it is a baseline."""
        return cast(ResolvedMethod[BaselineConfig], self) if isinstance(self.config, BaselineConfig) else None

    def to_dict(self) -> dict[str, Any]:
        """Name, source, deviations, values and origins, as JSON values."""
        return {**self.config.to_dict(), "origins": self.origins}


@checked
def check_named(name: str, settings: Mapping[str, Any]) -> Method:
    """Refuse what can be refused of a named method, or of a file of settings, before the model is known.

    Which settings of a method go together depends on the model's preset and family: `resolve_method` judges that.

    Returns:
        A baseline with its settings, which nothing about a model changes; a method as it is in the catalogue.

    Raises:
        MethodError: Unknown name or setting, or a value of the wrong type or range.
    """
    config, own = _found(name)
    given = {**(own.settings if own else {}), **settings}
    if isinstance(config, BaselineConfig):
        return apply_settings(config, given)
    read_settings(config, given)
    return config


@checked
def resolve_method(
    method: str | Method,
    lm: DecoderView,
    *,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ResolvedMethod[Method]:
    """Fix every value of a method or baseline for a model.

    Later sources win: the method's own values, the preset for the model (or the rule of depth), a file of settings,
    `settings`, `layers`.

    Args:
        method: A name from the catalogue, the path of a YAML file with settings (`read_method_file`), or a config. A
            config that is not its catalogue's entry gets no preset and no change for the model's family: its values
            stand. Without layers it gets those of the rule of depth.
        lm: The model.
        layers: Edited layers; None takes the config's, or the preset's.
        settings: Values by dotted name.

    Raises:
        MethodError: Unknown method or setting, values that exclude each other, a given setting that changes nothing,
            or layers that it cannot write.
        LayerError: A layer that the model does not have.
    """
    config, own = _found(method) if isinstance(method, str) else (method, None)
    origins = _own_origins(config)
    if config == CATALOGUE.get(config.name):
        config = _with_preset(config, lm, origins)
        config = _for_family(config, lm, origins)
    given: dict[str, Any] = {**(own.settings if own else {}), **(settings or {})}
    if given:
        config = apply_settings(config, given)
        origins.update(dict.fromkeys(own.settings if own else (), f"given ({own.path.name})" if own else ""))
        origins.update(dict.fromkeys(settings or (), "given (--set)"))
        config.check_given(given)
        if _LAMBDA & given.keys() and "memorization.share" not in given:
            config = config.with_own_lambda("off, as λ was given", origins)
    config = _with_layers(config, lm, layers, own, origins)
    config.check_model(lm)
    if own is not None:
        config = replace(config, name=own.name, source=own.source, presets="")
    return ResolvedMethod(config, origins)


@checked
def stored_method(name: str, source: str, settings: Mapping[str, Any]) -> Method:
    """A method or baseline from values that were stored, all of them: the named one with them, or one of its own.

    Args:
        name: As it was called.
        source: As it was told.
        settings: By dotted name, without layers.

    Raises:
        MethodError: A setting that this Emendo does not know, or no name that it has and no settings to tell it by.
    """
    known = CATALOGUE.spelled(name)
    if known is not None:
        return apply_settings(CATALOGUE[known], settings)
    for base in CATALOGUE.values():  # of the same kind: it has all of these settings
        if settings and settings.keys() <= base.settings().keys():
            plain = METHODS["emendo"] if base.name in METHODS else base
            return apply_settings(replace(plain, name=name, source=source, deviations=(), presets=""), settings)
    return method_named(name)  # says what is known


def _found(method: str) -> tuple[Method, MethodFile | None]:
    """The catalogue's entry of a name; or that which a file starts from, and the file."""
    if not is_method_file(method):
        return method_named(method), None
    own = read_method_file(method)
    return own.base, own


def _own_origins(config: Method) -> dict[str, str]:
    """Where a config's own values come from: the method of its name, or whoever changed them."""
    values = config.settings()
    named = CATALOGUE[config.name].settings() if config.name in CATALOGUE else values
    return {
        name: f"{config.kind} {config.name}" if value == named.get(name) else "given (config)"
        for name, value in values.items()
    }


def _with_preset(config: Method, lm: DecoderView, origins: dict[str, str]) -> Method:
    """A method of the catalogue with the settings that are known for the model."""
    found = preset_for(config, lm)
    if found is None:
        origins.update(UNTUNED.get(config.name, {}))
        return config
    preset, origin = found
    config = apply_settings(config, preset.settings).with_own_lambda(f"off, as λ is of the {origin}", origins)
    origins.update(dict.fromkeys(preset.settings, origin))
    if config.layers:
        return config
    origins["layers"] = origin
    return replace(config, layers=preset.layers)


def _for_family(config: Method, lm: DecoderView, origins: dict[str, str]) -> Method:
    asked = config.family_settings(lm)
    origins.update({name: why for name, (_, why) in asked.items()})
    return apply_settings(config, {name: value for name, (value, _) in asked.items()})


def _with_layers(
    config: Method,
    lm: DecoderView,
    layers: Sequence[int] | None,
    own: MethodFile | None,
    origins: dict[str, str],
) -> Method:
    """The method with layers of the model: those given, of the file, its own, or those of its rule."""
    chosen: Sequence[int]
    if layers is not None:
        chosen, origin = layers, "given (--layers)"
    elif own is not None and own.layers is not None:
        chosen, origin = own.layers, f"given ({own.path.name})"
    elif config.layers:
        chosen, origin = config.layers, origins["layers"]
    else:
        chosen, origin = config.default_layers(lm)
    origins.update({name: origin for name in ("layers", "n_layers") if name in origins})
    return config.with_layers(chosen, lm)
