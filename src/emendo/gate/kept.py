"""What rounding to the model's dtype leaves of the updates that a gate judges.

Every check asks the model with the rounded weights, so an edit that rounding eats is refused as one that does nothing;
this says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from emendo.editing.session import EditSession
from emendo.updates.against_model import edited_weight
from emendo.updates.rounding import kept_of, rounding
from emendo.updates.update import ModelUpdate, merge_layers


def kept_by_rounding(session: EditSession, updates: Sequence[ModelUpdate]) -> dict[int, float]:
    """For each layer that rounding changes, the share of the updates that it leaves, at the key where it leaves least.

    Args:
        session: Holds the model, and the updates before these.
        updates: The judged ones together; none: those that the session holds.

    Returns:
        Empty for a model in float32 or finer.
    """
    judged = updates or session.applied_updates
    earlier = session.applied_updates if updates else ()
    found: dict[int, float] = {}
    for part in merge_layers([part for update in judged for part in update.layers]):
        before = [one for update in earlier for one in update.layers if one.layer == part.layer]
        weight = edited_weight(session.lm.base_weight(part.layer), before)
        dtype = session.lm.weight(part.layer).dtype
        kept = kept_of(part, rounding(weight, part, dtype), part.keys, dtype)
        if kept is not None and math.isfinite(kept):
            found[part.layer] = kept
    return found
