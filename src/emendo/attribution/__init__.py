"""Edits as features: how far each fires at a token, and what each contributes to an answer.

Names are imported when used: edits and their algebra need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.attribution.algebra import base_rates, cross_firing, norm, reading, singular_values, stable_rank
    from emendo.attribution.answer import Asked, Attribution, ask, attribute, leave_out
    from emendo.attribution.comparison import Difference, PromptDifference, Side, State, difference
    from emendo.attribution.dashboard import Place, Scan, firing, promoted, scan, strongest_firing
    from emendo.attribution.edits import Edit, EditSet, edits_of
    from emendo.attribution.logit_lens import Lens, lens

__all__ = [
    "Asked",
    "Attribution",
    "Difference",
    "Edit",
    "EditSet",
    "Lens",
    "Place",
    "PromptDifference",
    "Scan",
    "Side",
    "State",
    "ask",
    "attribute",
    "base_rates",
    "cross_firing",
    "difference",
    "edits_of",
    "firing",
    "leave_out",
    "lens",
    "norm",
    "promoted",
    "reading",
    "scan",
    "singular_values",
    "stable_rank",
    "strongest_firing",
]

__getattr__ = lazy(
    __name__,
    {
        "Asked": "emendo.attribution.answer",
        "Attribution": "emendo.attribution.answer",
        "Difference": "emendo.attribution.comparison",
        "Edit": "emendo.attribution.edits",
        "EditSet": "emendo.attribution.edits",
        "Lens": "emendo.attribution.logit_lens",
        "Place": "emendo.attribution.dashboard",
        "PromptDifference": "emendo.attribution.comparison",
        "Scan": "emendo.attribution.dashboard",
        "Side": "emendo.attribution.comparison",
        "State": "emendo.attribution.comparison",
        "ask": "emendo.attribution.answer",
        "attribute": "emendo.attribution.answer",
        "base_rates": "emendo.attribution.algebra",
        "cross_firing": "emendo.attribution.algebra",
        "difference": "emendo.attribution.comparison",
        "edits_of": "emendo.attribution.edits",
        "firing": "emendo.attribution.dashboard",
        "leave_out": "emendo.attribution.answer",
        "lens": "emendo.attribution.logit_lens",
        "norm": "emendo.attribution.algebra",
        "promoted": "emendo.attribution.dashboard",
        "reading": "emendo.attribution.algebra",
        "scan": "emendo.attribution.dashboard",
        "singular_values": "emendo.attribution.algebra",
        "stable_rank": "emendo.attribution.algebra",
        "strongest_firing": "emendo.attribution.dashboard",
    },
)
