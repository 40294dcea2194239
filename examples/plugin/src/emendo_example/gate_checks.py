"""A gate check: the share of the whole change that the most changed layer has."""

from __future__ import annotations

from emendo.gate import Evidence, GateCheck, Measurement


def _largest_share(evidence: Evidence) -> Measurement:
    """Relative change of the most changed layer over the sum of all; at most 1."""
    growth = {change.layer: change.norm_growth for change in evidence.layers}
    if not growth or sum(growth.values()) == 0:
        return Measurement(None, 0, "no layer has changed")
    layer = max(growth, key=growth.__getitem__)
    share = growth[layer] / sum(growth.values())
    return Measurement(share, len(growth), f"of the relative change is in layer {layer}")


LARGEST_LAYER = GateCheck(
    name="largest_layer",
    meaning="Share of the change that one layer has; at most.",
    measure=_largest_share,
    reads=frozenset({"layers"}),
)
