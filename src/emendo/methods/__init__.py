"""Methods and baselines by name: their settings, the presets of models, and where each value came from."""

from emendo.methods.catalog import METHODS, method_named
from emendo.methods.config import ADDED_SETTINGS, MethodConfig, apply_settings, read_settings
from emendo.methods.resolve import ResolvedMethod, resolve_method

__all__ = [
    "ADDED_SETTINGS",
    "METHODS",
    "MethodConfig",
    "ResolvedMethod",
    "apply_settings",
    "method_named",
    "read_settings",
    "resolve_method",
]
