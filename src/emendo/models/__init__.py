"""Models: the only place that knows Hugging Face module names."""

from emendo.models.adapter import ModelAdapter
from emendo.models.architecture import ARCHITECTURES, WRAPPERS, ArchitectureSpec, has_dead_units
from emendo.models.batch import TokenBatch, pack_by_tokens
from emendo.models.edits import check_update, edited_weight
from emendo.models.hooks import Capture, adding
from emendo.models.loading import load, wrap
from emendo.models.refusals import REFUSALS
from emendo.models.saving import check_saveable, save_model

__all__ = [
    "ARCHITECTURES",
    "REFUSALS",
    "WRAPPERS",
    "ArchitectureSpec",
    "Capture",
    "ModelAdapter",
    "TokenBatch",
    "adding",
    "check_saveable",
    "check_update",
    "edited_weight",
    "has_dead_units",
    "load",
    "pack_by_tokens",
    "save_model",
    "wrap",
]
