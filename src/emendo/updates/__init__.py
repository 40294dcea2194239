"""Updates of weights as factors: their file, sums, folding, and one taken out of a sequence. No model is needed.

Sums of factors are exact; folding is exact to a stated tolerance. What a sum of updates that were planned apart does to
each of them is measured (`survival`), because it is not the edit that planning them together would have given.
`without` takes an update out of a sequence by algebra on what the updates store; `docs/guides/undo.md` derives it.
"""

from emendo.updates.fold import Folded, FoldedLayer, Sizes, break_even_rank, fold
from emendo.updates.merge import Survival, merge, scale, survival
from emendo.updates.removal import metric_layers, without
from emendo.updates.update import LayerUpdate, ModelUpdate

__all__ = [
    "Folded",
    "FoldedLayer",
    "LayerUpdate",
    "ModelUpdate",
    "Sizes",
    "Survival",
    "break_even_rank",
    "fold",
    "merge",
    "metric_layers",
    "scale",
    "survival",
    "without",
]
