"""The panels of a sweep beside a trace, all on one axis of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emendo.report.layers.words import effect_name
from emendo.report.lines import Line, Panel, Point, drawn


def panels(document: Mapping[str, Any]) -> list[Panel]:
    """Every panel that has something to show."""
    places = [row for row in document["places"] if row["error"] is None]
    found = [
        _panel(document, "Scores", "percent", _score_lines(places, ("ES", "PS", "NS", "S"))),
        _panel(document, "Argmax accuracy", "percent", _score_lines(places, ("EA", "PA"))),
        _panel(document, "Perplexity of held-out text, after / before", "", _lines(places, "perplexity_ratio")),
        _panel(document, "Size of the update", "‖ΔW‖ / ‖W‖", _lines(places, "relative_norm")),
        _panel(document, "Cost on preserved text", "tr(ΔW C ΔWᵀ) / tr(W C Wᵀ)", _lines(places, "relative_cost")),
        _panel(document, "Target that the search found", "nats a token", _lines(places, "target_nll")),
        _panel(document, "Size of the target's change", "‖δ‖ / ‖h‖", _lines(places, "delta_ratio")),
        _panel(document, "Leverage of the keys", "k A⁻¹ kᵀ", _lines(places, "leverage")),
        *(
            _panel(document, f"Causal effect: {kind}", document["trace"]["metric"], _effect_lines(document, kind))
            for kind in document["trace"]["kinds"]
        ),
    ]
    return [panel for panel in found if panel.lines]


def _panel(document: Mapping[str, Any], title: str, unit: str, lines: Sequence[Line]) -> Panel:
    chosen = next(row for row in document["places"] if row["recommended"])
    middle = sum(chosen["layers"]) / len(chosen["layers"])
    marked = ((middle, f"recommended: {chosen['name']}"),)
    return Panel(title, drawn(lines), unit, "layer", (0.0, float(document["n_layers"] - 1)), marked)


def _score_lines(places: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Line]:
    lines = []
    for name in names:
        points = [
            Point(_middle(row), row["scores"][name], _pair(row["intervals"].get(name)), _name(row))
            for row in _alone(places)
            if row["scores"].get(name) is not None
        ]
        lines.append(Line(name, tuple(points)))
    windows = [
        Point(_middle(row), row["scores"]["S"], _pair(row["intervals"].get("S")), row["name"])
        for row in places
        if len(row["layers"]) > 1
    ]
    if windows and "S" in names:
        lines = [line for line in lines if line.name != "NS"]
        lines.append(Line("S of windows", tuple(windows), joined=False))
    return lines


def _lines(places: Sequence[Mapping[str, Any]], name: str) -> list[Line]:
    lines = []
    for what, rows in (("single layers", _alone(places)), ("windows", [r for r in places if len(r["layers"]) > 1])):
        points = [Point(_middle(row), row[name], None, _name(row)) for row in rows if row[name] is not None]
        lines.append(Line(what, tuple(points), joined=what == "single layers"))
    return lines


def _effect_lines(document: Mapping[str, Any], kind: str) -> list[Line]:
    return [
        Line(
            f"{row['position']} token",
            tuple(
                Point(layer, mean, _pair(ends))
                for layer, (mean, ends) in enumerate(zip(row["mean"], row["interval"], strict=True))
            ),
        )
        for row in document["effects"]
        if row["kind"] == kind and effect_name(row)
    ]


def _alone(places: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in places if len(row["layers"]) == 1]


def _middle(row: Mapping[str, Any]) -> float:
    return float(sum(row["layers"]) / len(row["layers"]))


def _name(row: Mapping[str, Any]) -> str:
    return "" if len(row["layers"]) == 1 else str(row["name"])


def _pair(ends: Any) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))
