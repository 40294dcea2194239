"""Edits as features: how far each fires at a token, and what each contributes to an answer."""

from emendo.attribution.algebra import cross_firing, reading, singular_values, stable_rank
from emendo.attribution.answer import Asked, Attribution, ask, attribute, leave_out
from emendo.attribution.comparison import Difference, PromptDifference, Side, State, difference
from emendo.attribution.dashboard import Place, Scan, firing, promoted, scan, strongest_firing
from emendo.attribution.edits import Edit, EditSet, edits_of

__all__ = [
    "Asked",
    "Attribution",
    "Difference",
    "Edit",
    "EditSet",
    "Place",
    "PromptDifference",
    "Scan",
    "Side",
    "State",
    "ask",
    "attribute",
    "cross_firing",
    "difference",
    "edits_of",
    "firing",
    "leave_out",
    "promoted",
    "reading",
    "scan",
    "singular_values",
    "stable_rank",
    "strongest_firing",
]
