"""A sweep over layers beside a trace as one JSON document that page, Markdown and terminal are made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emendo.tracing.sweep import OUTCOMES, LayerStudy, Place

SCORES = ("ES", "PS", "NS", "S", "EA", "PA")
"""Scores that a page shows; the document has all."""


def document(study: LayerStudy) -> dict[str, Any]:
    """The document."""
    chosen = study.recommended
    return {
        "format": "emendo.layers",
        "version": 1,
        "model": dict(study.model),
        "n_layers": study.n_layers,
        **study.made,
        "facts": list(study.facts),
        "traced": len(study.trace.facts),
        "known": study.known,
        "trace_made": study.trace.made,
        "places": [_place(study, place) for place in study.places],
        "effects": [
            {
                "kind": average.kind,
                "position": average.position,
                "mean": list(average.mean),
                "interval": [None if ends is None else list(ends) for ends in average.interval],
                "n": average.n,
            }
            for average in study.trace.averages()
            if average.position in ("last subject", "last")
        ],
        "correlations": [
            {"kind": kind, "position": position, **study.correlations[kind, position].to_dict()}
            for kind, position in study.predictors
        ],
        "regret": [
            {"kind": kind, "position": position, "layer": layer, **behind.to_dict()}
            for (kind, position), (layer, behind) in study.regrets.items()
        ],
        "explained": [
            {"outcome": outcome, "what": OUTCOMES[outcome], "kind": kind, "position": position, "n": n, **fit.to_dict()}
            for (outcome, kind, position), (n, fit) in study.explained.items()
        ],
        "best": study.edited[study.standing.best].name,
        "recommended": {
            "layers": list(chosen.layers),
            "option": f"--layers {chosen.name}",
            "preset": preset_line(study, chosen),
        },
    }


def preset_line(study: LayerStudy, place: Place) -> str:
    """A row of `methods/presets.py`, with where it comes from."""
    layers = ", ".join(map(str, place.layers)) + ("," if len(place.layers) == 1 else "")
    made = study.made
    source = (
        f"measured by emendo layers on {len(study.facts)} facts ({made['data'].rpartition('/')[2]}, {made['part']})"
    )
    return f'Preset(({layers}), "{source}")'


def _place(study: LayerStudy, place: Place) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layers": list(place.layers),
        "name": place.name,
        "error": place.error,
        "scores": {name: place.scores[name] for name in place.scores if name.isupper()},
        "intervals": dict(place.scores.get("intervals", {})),
        "perplexity_ratio": place.perplexity_ratio,
        "relative_norm": place.relative_norm,
        "relative_cost": place.relative_cost,
        "target_nll": place.target_nll,
        "delta_ratio": place.delta_ratio,
        "leverage": place.leverage,
        "seconds": place.seconds,
        "behind": None,
        "alike": False,
        "recommended": place is study.recommended,
    }
    if place.error is None:
        number = study.edited.index(place)
        row["behind"], row["alike"] = study.standing.behind[number].to_dict(), study.standing.alike[number]
    return row


def told(estimate: Mapping[str, Any], digits: int = 2, sign: bool = False) -> str:
    """A number with its interval in words."""
    if estimate["value"] is None:
        return "not defined"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    value = form.format(estimate["value"])
    ends = estimate["interval"]
    return value if ends is None else f"{value} [{form.format(ends[0])}, {form.format(ends[1])}]"
