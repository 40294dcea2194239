"""The catalogue of methods and baselines: their settings, the presets of models, and where each value came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.methods.catalog import BASELINES, CATALOGUE, METHODS, method_named, register_method
    from emendo.methods.config import (
        ADDED_SETTINGS,
        BaselineConfig,
        Method,
        MethodConfig,
        apply_settings,
        read_settings,
    )
    from emendo.methods.files import MethodFile, read_method_file, spelled_out
    from emendo.methods.resolve import ResolvedMethod, check_named, resolve_method, stored_method

DEFAULT_METHOD = "emendo"
"""The method of every command and function where none is named."""

__all__ = [
    "ADDED_SETTINGS",
    "BASELINES",
    "CATALOGUE",
    "DEFAULT_METHOD",
    "METHODS",
    "BaselineConfig",
    "Method",
    "MethodConfig",
    "MethodFile",
    "ResolvedMethod",
    "apply_settings",
    "check_named",
    "method_named",
    "read_method_file",
    "read_settings",
    "register_method",
    "resolve_method",
    "spelled_out",
    "stored_method",
]

__getattr__ = lazy(
    __name__,
    {
        **dict.fromkeys(
            ("BASELINES", "CATALOGUE", "METHODS", "method_named", "register_method"), "emendo.methods.catalog"
        ),
        **dict.fromkeys(
            ("ADDED_SETTINGS", "BaselineConfig", "Method", "MethodConfig", "apply_settings", "read_settings"),
            "emendo.methods.config",
        ),
        **dict.fromkeys(("MethodFile", "read_method_file", "spelled_out"), "emendo.methods.files"),
        **dict.fromkeys(("ResolvedMethod", "check_named", "resolve_method", "stored_method"), "emendo.methods.resolve"),
    },
)
