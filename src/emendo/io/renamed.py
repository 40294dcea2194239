"""Module names of the version before, which scripts still import: each leads to where its names are, and says so."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES: dict[str, tuple[str, ...]] = {
    "emendo.activations": ("emendo.editing.keys", "emendo.editing.objective", "emendo.editing.value_search"),
    "emendo.baselines": ("emendo.methods", "emendo.editing.baselines.fit"),
    "emendo.compose": ("emendo.updates", "emendo.updates.merge", "emendo.updates.fold"),
    "emendo.distribution": ("emendo.solve.distribution", "emendo.solve.shares"),
    "emendo.harness": ("emendo.evaluate.harness",),
    "emendo.home": ("emendo.io.home",),
    "emendo.models.adapter": ("emendo.models.editable",),
    "emendo.moments": ("emendo.statistics",),
    "emendo.pipeline": ("emendo.editing.pipeline",),
    "emendo.plan": ("emendo.editing.plan",),
    "emendo.session": ("emendo.editing.session",),
    "emendo.text": ("emendo.requests", "emendo.models.alignment", "emendo.models.word_end", "emendo.editing.contexts"),
    "emendo.undo": ("emendo.updates", "emendo.updates.removal"),
    "emendo.update": ("emendo.updates.update",),
}
"""Old module, and the modules that hold its names now, in the order in which they are asked."""

NAMES = {"ModelAdapter": "EditableModel"}
"""Old names of classes."""


class _Finder(MetaPathFinder, Loader):
    """Finds the old modules; asked only where no module of that name is there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        homes = MODULES[module.__name__]
        warnings.warn(
            f"{module.__name__} is now {' and '.join(homes)}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )

        def find(name: str) -> Any:
            wanted = NAMES.get(name, name)
            for home in homes:
                found = importlib.import_module(home)
                if hasattr(found, wanted):
                    return getattr(found, wanted)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = find


def keep_old_names() -> None:
    """Let the old module names be imported; done once, however often it is called."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
