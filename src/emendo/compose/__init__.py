"""Updates as things to add, scale and compact, without a model: `merge`, `scale`, `fold`.

Sums of factors are exact; folding is exact to a stated tolerance. What a sum of updates that were planned apart does to
each of them is measured (`survival`), because it is not the edit that planning them together would have given.
"""

from emendo.compose.fold import Folded, FoldedLayer, Sizes, break_even_rank, fold
from emendo.compose.merge import Survival, merge, scale, survival

__all__ = [
    "Folded",
    "FoldedLayer",
    "Sizes",
    "Survival",
    "break_even_rank",
    "fold",
    "merge",
    "scale",
    "survival",
]
