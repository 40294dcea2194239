"""What a sweep beside a trace says, in sentences and rows that page, Markdown and terminal share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emendo.report.layers.document import told
from emendo.report.trace.heat import KIND_NAMES


def effect_name(row: Mapping[str, Any]) -> str:
    """What was restored, and where."""
    return f"{KIND_NAMES[row['kind']]} at the {row['position']} token"


def verdict(document: Mapping[str, Any]) -> list[str]:
    """The recommendation and what it rests on."""
    places = {row["name"]: row for row in document["places"]}
    alike = [row["name"] for row in document["places"] if row["alike"]]
    chosen = next(row for row in document["places"] if row["recommended"])
    best = places[document["best"]]
    lines = [
        f"Highest S: layer {best['name']} ({best['scores']['S']:.1f}).",
        f"Cannot be told from it at 95 % on {len(document['facts'])} facts: {', '.join(alike)}.",
        f"The one of them that costs preserved text least: {document['recommended']['option']} (S "
        f"{chosen['scores']['S']:.1f}, behind the best by {told(chosen['behind'], 1)}).",
        f"As a preset: {document['recommended']['preset']}",
    ]
    failed = [row for row in document["places"] if row["error"] is not None]
    lines += [f"Layer {row['name']} could not be edited: {row['error']}" for row in failed]
    return lines


def traced(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For each kind of effect its rank correlation with S over layers, and what following it alone costs."""
    regrets = {(row["kind"], row["position"]): row for row in document["regret"]}
    rows = []
    for row in document["correlations"]:
        cost = regrets[row["kind"], row["position"]]
        rows.append((effect_name(row), told(row, 2, sign=True), f"{told(cost, 1)} at layer {cost['layer']}"))
    return rows


def explained(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """R² by fact and layer: of the layer, of tracing, of both, and what tracing adds."""
    return [
        (
            row["what"],
            effect_name(row),
            *(told(row[name], 3) for name in ("layer", "tracing", "both")),
            told(row["gain"], 4),
        )
        for row in document["explained"]
    ]


def how(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was made, as pairs of a name and a text."""
    model, settings = document["model"], document["trace"]
    alone = document["batch_size"] == 1
    edits = "one at a time" if alone else f"in batches of {document['batch_size']}"
    named = "; ".join(f"{name}={value}" for name, value in document["settings"].items())
    return [
        ("Model", f"{model['name']} (weights {model['weights_sha256'][:12]}…)"),
        ("Facts", f"{len(document['facts'])} of {document['data']}, part {document['part']}, seed {document['seed']}"),
        ("Edits", f"{document['method']}{f' ({named})' if named else ''}, {edits}; the model restored after each"),
        (
            "Trace",
            f"{document['traced']} of the facts, for what the model says ({document['known']} of them the true "
            f"answer); {settings['samples']} corrupted runs, window {settings['window']}, {settings['metric']}",
        ),
        ("Intervals", "95 %, facts resampled with all their layers"),
    ]
