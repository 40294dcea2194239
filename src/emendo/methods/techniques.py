"""What `EditSession.plan` and `--method` take: a method of the engine, or a baseline that methods are held against.

Both are data, found by name, changed by the same settings syntax and resolved for a model. This is the one place that
tells them apart before planning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from emendo.methods import METHODS, MethodConfig, ResolvedMethod, apply_settings, read_settings, resolve_method
from emendo.methods.baseline_config import BaselineConfig, InContextSettings, apply_baseline_settings
from emendo.methods.baseline_resolve import ResolvedBaseline, resolve_baseline
from emendo.methods.baselines import BASELINES
from emendo.methods.in_context import in_context_records
from emendo.requests import EditRecord
from emendo.suggest import look_up

if TYPE_CHECKING:
    from emendo.models import ModelAdapter

Technique: TypeAlias = MethodConfig | BaselineConfig
ResolvedTechnique: TypeAlias = ResolvedMethod | ResolvedBaseline


def technique_named(name: str) -> Technique:
    """The named method or baseline, whatever the case of its letters.

    Raises:
        MethodError: Unknown name, with the nearest known one.
    """
    known: dict[str, Technique] = {**METHODS, **BASELINES}
    return look_up("method", name, known, "--method")


def canonical_name(name: str) -> str:
    """The name as the catalog has it, whatever the case of its letters; an unknown one as it is."""
    return name if name in METHODS or name.lower() not in {**METHODS, **BASELINES} else name.lower()


def with_settings(technique: Technique, settings: Mapping[str, Any]) -> Technique:
    """A copy of a method or baseline with some settings replaced.

    Args:
        technique: What to start from.
        settings: Values by dotted name; strings are read as the setting's type.

    Raises:
        MethodError: An unknown name (with the nearest known ones) or a value of the wrong type or range.
    """
    if isinstance(technique, BaselineConfig):
        return apply_baseline_settings(technique, settings)
    return apply_settings(technique, settings)


def check_named(name: str, settings: Mapping[str, Any]) -> Technique:
    """Refuse what can be refused of a named technique before the model is known.

    Which settings of a method go together depends on the model's preset and family: `resolve_technique` judges that.

    Returns:
        A baseline with its settings, which nothing about a model changes; a method as it is in the catalog.

    Raises:
        MethodError: Unknown name or setting, or a value of the wrong type or range.
    """
    technique = technique_named(name)
    if isinstance(technique, BaselineConfig):
        return apply_baseline_settings(technique, settings)
    read_settings(technique, settings)
    return technique


def resolve_technique(
    technique: str | Technique,
    adapter: ModelAdapter,
    *,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ResolvedTechnique:
    """Fix every value of a method or baseline for a model.

    Args:
        technique: A name, or a config of one's own.
        adapter: The model.
        layers: Edited layers; None takes the preset's, or the baseline's own.
        settings: Values by dotted name.

    Raises:
        MethodError: Unknown name or setting, or layers that it cannot write.
        LayerError: A layer that the model does not have.
    """
    config = technique_named(technique) if isinstance(technique, str) else technique
    if isinstance(config, BaselineConfig):
        return resolve_baseline(config, adapter, layers=layers, settings=settings)
    return resolve_method(config, adapter, layers=layers, settings=settings)


def asked_after(technique: Technique, records: Sequence[EditRecord]) -> list[EditRecord]:
    """The records as the model is asked them once the edit is in: as they are, or with the fact in context.

    Raises:
        RequestError: A fact that cannot be put in front of a prompt.
    """
    if isinstance(technique, BaselineConfig) and isinstance(technique.own, InContextSettings):
        return in_context_records(records, technique.own)
    return list(records)
