"""Updates of weights as factors: their file, sums, folding, and one taken out of a sequence. No model is needed.

Sums of factors are exact; folding is exact to a stated tolerance. What a sum of updates that were planned apart does to
each of them is measured (`survival`), because it is not the edit that planning them together would have given.
`without` takes an update out of a sequence by algebra on what the updates store; `docs/guides/undo.md` derives it.

Names are imported when used, so that an update file can be looked at without torch (`stored.py`). `fold` and `merge`
are names of modules too: take the functions from there (``from emendo.updates.merge import merge``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.updates.against_model import check_update, edited_weight
    from emendo.updates.fold import Folded, FoldedLayer, Sizes, break_even_rank
    from emendo.updates.merge import Survival, scale, survival
    from emendo.updates.predecessors import Predecessors
    from emendo.updates.removal import metric_layers, without
    from emendo.updates.stored import StoredUpdate
    from emendo.updates.update import LayerUpdate, ModelUpdate

__all__ = [
    "Folded",
    "FoldedLayer",
    "LayerUpdate",
    "ModelUpdate",
    "Predecessors",
    "Sizes",
    "StoredUpdate",
    "Survival",
    "break_even_rank",
    "check_update",
    "edited_weight",
    "metric_layers",
    "scale",
    "survival",
    "without",
]

_FOLD, _MERGE = "emendo.updates.fold", "emendo.updates.merge"

__getattr__ = lazy(
    __name__,
    {
        "Folded": _FOLD,
        "FoldedLayer": _FOLD,
        "Sizes": _FOLD,
        "break_even_rank": _FOLD,
        "Survival": _MERGE,
        "scale": _MERGE,
        "survival": _MERGE,
        "check_update": "emendo.updates.against_model",
        "edited_weight": "emendo.updates.against_model",
        "Predecessors": "emendo.updates.predecessors",
        "metric_layers": "emendo.updates.removal",
        "without": "emendo.updates.removal",
        "StoredUpdate": "emendo.updates.stored",
        "LayerUpdate": "emendo.updates.update",
        "ModelUpdate": "emendo.updates.update",
    },
)
