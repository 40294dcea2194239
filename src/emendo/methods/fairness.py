"""Whether cells that compare methods differ in more than the method, and settings that make searches alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from emendo.methods import METHODS, spelled_out

Search: TypeAlias = Literal["exact", "fast"]
"""How every method of an experiment searches its values, where it says so."""

SEARCHES: Mapping[Search, Mapping[str, Any]] = {
    "exact": {"target.steps": 25, "target.argmax_steps": None, "target.precision": "float32"},
    "fast": {"target.steps": 25, "target.argmax_steps": 5, "target.precision": "bfloat16"},
}
"""The search of MEMIT as published, which takes all its steps; and one that stops once the target is said."""

_COMPARED = (
    *("layers", "contexts.scheme", "target.steps", "target.argmax_steps", "target.loss_threshold"),
    *("target.kl_threshold", "target.precision"),
)
"""Settings that are no method's idea: where is written, and in which contexts, how long and how exactly is searched."""


_SAME = ("model", "data", "n", "mode", "batch_size", "seed", "part")
"""Cells that agree in these compare methods."""


def search_settings(method: str, search: Search | None) -> dict[str, Any]:
    """The settings of a search for a method that has one; none for a baseline."""
    if search is None:
        return {}
    name, _, _ = spelled_out(method, {}, None)
    return dict(SEARCHES[search]) if name in METHODS else {}


def differences_between(cells: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """What differs between cells beside the method, a line for each setting, where cells compare methods.

    Args:
        cells: Each as `Cell.to_dict` gives it, with its resolved method, likewise.
    """
    groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for cell, resolved in cells:
        same = tuple(str(cell.get(name)) for name in _SAME)
        settings = {"layers": resolved.get("layers"), **(resolved.get("settings") or {})}
        groups.setdefault(same, {}).setdefault(str(cell.get("method")), settings)
    lines: dict[str, None] = {}
    for methods in groups.values():
        searching = {name: values for name, values in methods.items() if "target.steps" in values}
        for setting in _COMPARED:
            values = {name: _shown(settings.get(setting)) for name, settings in searching.items()}
            if len(set(values.values())) > 1:
                lines[f"{setting}: {', '.join(f'{name}={value}' for name, value in values.items())}"] = None
    return list(lines)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(str, (value[0], value[-1]) if len(value) > 1 else value)) if value else "none"
    return "none" if value is None else str(value)
