"""A method as data: one value for each axis of the engine, or a baseline with a few settings of its own.

Nothing here runs. `catalog.py` holds the named ones, `presets.py` the published settings by model, and `resolve.py`
puts the two and the user's own settings together. What differs between a method of the engine and a baseline is in
their two classes, so that nobody else has to ask which it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from emendo.arguments import checked
from emendo.errors import InputError, MethodError
from emendo.methods.axes import Axes
from emendo.methods.checks import check_values, leaves, parse, section_of
from emendo.methods.explained import unknown_setting
from emendo.methods.family import check_family, check_mixture, family_settings
from emendo.methods.layers import layers_by_depth
from emendo.methods.rules import check_effects, check_together
from emendo.methods.settings import (
    BaselineSettings,
)
from emendo.solve.distribution import DISTRIBUTIONS, distribution_steps

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView
    from emendo.requests import EditRecord

ADDED_SETTINGS: Mapping[str, Any] = {
    "target.word_end_weight": 0.0,
    "target.word_end_enough": 1.0,
    "preservation.dead_ridge": 0.0,
    "memorization.share": None,
}
"""Settings that methods have got since edits are kept, with the value at which an edit is what it was without them."""

M = TypeVar("M", bound="Method")


@dataclass(frozen=True)
class Method:
    """What methods of the engine and baselines have in common: a name, a paper, layers and settings.

    Args:
        name: How users call it.
        source: Paper and equation, or what was measured.
        deviations: Where it differs from its source.
        presets: The method whose settings by model apply to this one of the catalog too; its own where empty.
        layers: Edited layers, ascending; empty until resolved for a model.

    Raises:
        MethodError: A value of the wrong type or range, or values that exclude each other.
    """

    kind: ClassVar[str] = "method"

    name: str
    source: str
    deviations: tuple[str, ...] = ()
    presets: str = ""
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_values(self)

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted name, as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value, _ in leaves(self)
            if name not in _LABELS
        }

    def to_dict(self) -> dict[str, Any]:
        """Name, source, deviations and settings, as JSON values."""
        return {
            "name": self.name,
            "source": self.source,
            "deviations": list(self.deviations),
            "settings": self.settings(),
        }

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """The layers for a model where neither the user nor a preset names any, and the reason in words."""
        raise NotImplementedError

    def with_layers(self: M, layers: Sequence[int], lm: DecoderView) -> M:
        """The method on these layers of a model.

        Raises:
            LayerError: A layer that the model does not have.
            MethodError: Layers that it cannot write.
        """
        return replace(self, layers=tuple(lm.check_layers(layers)))

    def family_settings(self, lm: DecoderView) -> dict[str, tuple[Any, str]]:
        """Settings that the model's family asks for, by dotted name, each with the reason in words."""
        return {}

    def with_own_lambda(self: M, why: str, origins: dict[str, str]) -> M:
        """The method with its λ as it stands, where it would be chosen anew for every edit.

        Args:
            why: In words; becomes the origin of what is turned off.
            origins: By dotted name.
        """
        return self

    def check_model(self, lm: DecoderView) -> None:
        """Refuse values that the model's family excludes.

        Raises:
            MethodError: Says which, and what to set instead.
        """

    def check_given(self, names: Collection[str]) -> None:
        """Refuse given settings that change nothing.

        Raises:
            MethodError: Names all of them.
        """

    def evaluation_prompts(self, records: Sequence[EditRecord]) -> list[EditRecord]:
        """The records as the model is asked them once the edit is in.

        Raises:
            RequestError: A fact that cannot be put in front of a prompt.
        """
        return list(records)


@dataclass(frozen=True)
class MethodConfig(Axes, Method):
    """One point in the engine's parameter space: a value on each of its `Axes`, with a name.

    Args:
        name: How users call it.
        source: Paper and equation, or what was measured.
        deviations: Where the authors' public code differs from the paper, or this method from their code.
        presets: The method whose settings by model apply to this one of the catalog too; its own where empty.
        layers: Edited layers, ascending; empty until resolved for a model.

    Raises:
        MethodError: A value of the wrong type or range, or values that exclude each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_together(self)

    @property
    def written_layers(self) -> tuple[int, ...]:
        """The edited layers that get an update."""
        return tuple(step.layer for step in distribution_steps(self.distribution, self.layers))

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """As many layers as the method edits, by the rule of depth."""
        return layers_by_depth(lm, self.n_layers)

    def with_layers(self: MethodConfig, layers: Sequence[int], lm: DecoderView) -> MethodConfig:
        """The method on these layers; how many there are follows from them."""
        chosen = tuple(lm.check_layers(layers))
        if DISTRIBUTIONS[self.distribution].one_layer and len(chosen) > 1:
            raise MethodError(
                f"{self.name} writes one layer, found {list(chosen)}; give one (--layers {chosen[-1]}) or "
                "spread the edit (--set distribution=even)"
            )
        return replace(self, layers=chosen, n_layers=len(chosen))

    def family_settings(self, lm: DecoderView) -> dict[str, tuple[Any, str]]:
        """What the family needs where its MLP's output is normed, or units of a ReLU may never fire."""
        return family_settings(self, lm)

    def with_own_lambda(self: MethodConfig, why: str, origins: dict[str, str]) -> MethodConfig:
        """The method with `preservation` as it stands."""
        if self.memorization.share is None:
            return self
        origins["memorization.share"] = why
        return replace(self, memorization=replace(self.memorization, share=None))

    def check_model(self, lm: DecoderView) -> None:
        """Refuse what a family with a normed MLP, or layers that are mixtures of experts, cannot have."""
        check_family(self, lm)
        check_mixture(self, self.layers, lm)

    def check_given(self, names: Collection[str]) -> None:
        """Refuse given settings that the method never looks at."""
        check_effects(self.name, self, names)


@dataclass(frozen=True)
class BaselineConfig(Method):
    """A baseline with its settings.

    Args:
        name: How users call it.
        source: Paper.
        deviations: Where it differs from what the source did.
        presets: The baseline whose settings by model apply to this one of the catalog too; its own where empty.
        layers: Trained layers, ascending; empty until resolved for a model.
        own: Its settings; their class says which baseline runs.

    Raises:
        MethodError: A value of the wrong type or range.
    """

    kind: ClassVar[str] = "baseline"

    own: BaselineSettings = field(kw_only=True)

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """What the baseline trains by itself."""
        layers, why = self.own.default_layers(lm)
        return layers, why if layers else f"{self.name} {why}"

    def with_layers(self: BaselineConfig, layers: Sequence[int], lm: DecoderView) -> BaselineConfig:
        """The baseline on these layers; none for one that changes no weights."""
        if self.own.trainer:
            return super().with_layers(layers, lm)
        if layers:
            raise MethodError(f"{self.name} changes no weights, found layers {list(layers)}; leave --layers out")
        return replace(self, layers=())

    def check_model(self, lm: DecoderView) -> None:
        """Refuse to train mixtures of experts: what trains a linear map knows nothing of routed keys."""
        routed = [layer for layer in self.layers if lm.mixture(layer) is not None]
        if self.own.trainer and routed:
            raise MethodError(
                f"{self.name} trains one linear map a layer, and layers {routed} of {lm.spec.model_type} are mixtures "
                "of experts, whose maps see the tokens that are routed to them; expected a method of the engine "
                "(--method emendo) or --method in-context"
            )

    def evaluation_prompts(self, records: Sequence[EditRecord]) -> list[EditRecord]:
        """As they are, or with the fact in context."""
        return self.own.evaluation_prompts(records)


_LABELS = ("name", "source", "deviations", "presets")
"""What a method is called and where it comes from: not settings."""

_FIXED = (*_LABELS, "layers", "n_layers")
"""Not settable with --set: names, and layers, which have their own argument."""


@checked
def apply_settings(config: M, settings: Mapping[str, Any]) -> M:
    """A copy of a method or baseline with some settings replaced.

    Args:
        config: What to start from.
        settings: Values by dotted name, such as ``{"target.steps": 20}``; strings are read as the field's type.

    Raises:
        MethodError: An unknown name (with the nearest known ones), a value of the wrong type or range, or values that
            exclude each other.
    """
    return _replaced(config, read_settings(config, settings))


@checked
def read_settings(config: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings as values of their types, each checked by itself: what goes together is not looked at.

    Raises:
        MethodError: An unknown name (with the nearest known ones) or a value of the wrong type or range.
    """
    types = {name: kind for name, _, kind in leaves(config) if name not in _FIXED}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in types:
            raise MethodError(unknown_setting(name, types))
        values[name] = parse(name, value, types[name])
    return values


def _replaced(config: M, values: Mapping[str, Any]) -> M:
    """The config with all values at once: what only one of two values would make of it may be refused."""
    homes = {section_of(getattr(config, entry.name), entry.name): entry.name for entry in fields(config)}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
    changed = sections.pop("", {})
    for section, given in sections.items():
        try:
            changed[homes[section]] = replace(getattr(config, homes[section]), **given)
        except MethodError:
            raise
        except InputError as error:
            told = ", ".join(f"{section}.{leaf}={value!r}" for leaf, value in given.items())
            raise MethodError(f"{told}: {error}") from error
    return replace(config, **changed)
