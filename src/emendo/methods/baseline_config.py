"""A baseline as data: a name, a source, and a few settings, checked strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from emendo.errors import MethodError
from emendo.methods.explained import unknown_setting

_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FACT, PROBE = "{fact}", "{probe}"


@dataclass(frozen=True)
class _Settings:
    """One baseline's own settings; a wrong value is refused wherever it comes from.

    Attributes:
        section: First part of the settings' dotted names.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, kind in _types(self).items():
            _checked(f"{self.section}.{name}", getattr(self, name), kind)


@dataclass(frozen=True)
class TrainingSettings(_Settings):
    """How weights are trained on the target tokens of the plain prompts.

    Args:
        steps: Most passes over all requests.
        learning_rate: Of Adam.
        loss_threshold: Training ends after a pass whose mean loss is below this, in nats; a mini-batch below it is
            not stepped on.
        batch_size: Requests of one step.
    """

    steps: _Count = 25
    learning_rate: _Positive = 5e-4
    loss_threshold: _NotNegative = 1e-2
    batch_size: _Count = 128


@dataclass(frozen=True)
class FineTuneSettings(TrainingSettings):
    """Fine-tuning of whole down-projections, with a bound on every entry's change.

    Args:
        max_change: Largest |ΔW| of any entry (norm_constraint of the public code); None, in text ``none``, leaves the
            weights free.
    """

    section: ClassVar[str] = "fine_tune"

    max_change: _Positive | None = 5e-4


@dataclass(frozen=True)
class LoraSettings(TrainingSettings):
    """Low-rank adapters on the down-projections.

    Args:
        rank: Rows of A.
        alpha: ΔW is ``alpha / rank · B A``.
    """

    section: ClassVar[str] = "lora"

    steps: _Count = 50
    learning_rate: _Positive = 1e-3
    batch_size: _Count = 32
    rank: _Count = 8
    alpha: _Positive = 16.0


@dataclass(frozen=True)
class InContextSettings(_Settings):
    """The fact in front of the prompt.

    Args:
        template: Text with ``{fact}`` once and, at its end, ``{probe}`` once.
    """

    section: ClassVar[str] = "in_context"

    template: str = f"Imagine that {FACT}. {PROBE}"

    def __post_init__(self) -> None:
        super().__post_init__()
        lead = self.template.removesuffix(PROBE)
        if lead == self.template or lead.count(FACT) != 1 or PROBE in lead or "{}" in lead:
            raise MethodError(
                f"in_context.template={self.template!r}: expected {FACT} once, no {{}}, and {PROBE} once, at the end "
                f"(--set 'in_context.template=Imagine that {FACT}. {PROBE}')"
            )


@dataclass(frozen=True)
class BaselineConfig:
    """A baseline with its settings.

    Args:
        name: How users call it.
        source: Paper.
        own: Its settings; their class says which baseline runs.
        deviations: Where it differs from what the source did.
        layers: Trained layers, ascending; empty until resolved for a model.
    """

    name: str
    source: str
    own: FineTuneSettings | LoraSettings | InContextSettings
    deviations: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted name, as JSON values."""
        return {f"{self.own.section}.{entry.name}": getattr(self.own, entry.name) for entry in fields(self.own)}

    def to_dict(self) -> dict[str, Any]:
        """Name, source, deviations and settings, as JSON values."""
        return {
            "name": self.name,
            "source": self.source,
            "deviations": list(self.deviations),
            "settings": self.settings(),
        }


def apply_baseline_settings(config: BaselineConfig, settings: Mapping[str, Any]) -> BaselineConfig:
    """A copy of `config` with some settings replaced.

    Args:
        config: The baseline to start from.
        settings: Values by dotted name, such as ``{"fine_tune.steps": 10}``; strings are read as the setting's type.

    Raises:
        MethodError: An unknown name (with the nearest known ones) or a value of the wrong type or range.
    """
    types = {f"{config.own.section}.{name}": kind for name, kind in _types(config.own).items()}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in types:
            raise MethodError(unknown_setting(name, types))
        values[name.partition(".")[2]] = _parse(name, value, types[name])
    return replace(config, own=replace(config.own, **values))


def _types(settings: _Settings) -> dict[str, Any]:
    """Type of each setting, with its range."""
    hints = get_type_hints(type(settings), include_extras=True)
    return {entry.name: hints[entry.name] for entry in fields(settings)}


def _parse(name: str, value: Any, kind: Any) -> Any:
    """A value as its setting's type; text is read, anything else has to be of the type already."""
    if not isinstance(value, str):
        return _checked(name, value, kind)
    if value.lower() == "none" and type(None) in get_args(kind):
        return None
    reader: TypeAdapter[Any] = TypeAdapter(kind)
    return _told(name, value, lambda: reader.validate_strings(value))


def _checked(name: str, value: Any, kind: Any) -> Any:
    reader: TypeAdapter[Any] = TypeAdapter(kind)
    return _told(name, value, lambda: reader.validate_python(value, strict=True))


def _told(name: str, value: Any, read: Callable[[], Any]) -> Any:
    """The value that `read` gives, its refusal in our words."""
    try:
        return read()
    except ValidationError as error:
        raise MethodError(f"{name}={value!r}: {error.errors()[0]['msg'].lower()} (--set {name}=VALUE)") from error
