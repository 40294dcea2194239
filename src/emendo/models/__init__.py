"""Models: the only place that knows Hugging Face module names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.models.architecture import (
        ARCHITECTURES,
        WRAPPERS,
        ArchitectureSpec,
        has_dead_units,
        register_model_family,
    )
    from emendo.models.batch import (
        TokenBatch,
        pack_by_tokens,
    )
    from emendo.models.decoder import (
        DecoderView,
    )
    from emendo.models.editable import (
        EditableModel,
    )
    from emendo.models.hooks import (
        Capture,
        adding,
    )
    from emendo.models.loading import (
        load,
        wrap,
    )
    from emendo.models.refusals import (
        REFUSALS,
    )
    from emendo.models.saving import (
        check_saveable,
        save_model,
    )

__all__ = [
    "ARCHITECTURES",
    "REFUSALS",
    "WRAPPERS",
    "ArchitectureSpec",
    "Capture",
    "DecoderView",
    "EditableModel",
    "TokenBatch",
    "adding",
    "check_saveable",
    "has_dead_units",
    "load",
    "pack_by_tokens",
    "register_model_family",
    "save_model",
    "wrap",
]

__getattr__ = lazy(
    __name__,
    {
        "ARCHITECTURES": "emendo.models.architecture",
        "ArchitectureSpec": "emendo.models.architecture",
        "Capture": "emendo.models.hooks",
        "DecoderView": "emendo.models.decoder",
        "EditableModel": "emendo.models.editable",
        "ModelAdapter": "emendo.models.editable",
        "REFUSALS": "emendo.models.refusals",
        "TokenBatch": "emendo.models.batch",
        "WRAPPERS": "emendo.models.architecture",
        "adding": "emendo.models.hooks",
        "check_saveable": "emendo.models.saving",
        "has_dead_units": "emendo.models.architecture",
        "load": "emendo.models.loading",
        "pack_by_tokens": "emendo.models.batch",
        "register_model_family": "emendo.models.architecture",
        "save_model": "emendo.models.saving",
        "wrap": "emendo.models.loading",
    },
)
