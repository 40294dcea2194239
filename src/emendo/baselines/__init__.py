"""Baselines that editing methods are held against: fine-tuning, LoRA, and the fact in the prompt."""

from emendo.baselines.catalog import BASELINES, baseline_layers, baseline_named
from emendo.baselines.config import (
    BaselineConfig,
    FineTuneSettings,
    InContextSettings,
    LoraSettings,
    apply_baseline_settings,
)
from emendo.baselines.fit import baseline_records, fit_baseline
from emendo.baselines.in_context import in_context_records
from emendo.baselines.resolve import ResolvedBaseline, resolve_baseline

__all__ = [
    "BASELINES",
    "BaselineConfig",
    "FineTuneSettings",
    "InContextSettings",
    "LoraSettings",
    "ResolvedBaseline",
    "apply_baseline_settings",
    "baseline_layers",
    "baseline_named",
    "baseline_records",
    "fit_baseline",
    "in_context_records",
    "resolve_baseline",
]
