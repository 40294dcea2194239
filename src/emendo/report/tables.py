"""Tables of a report, from its document: the same columns for the terminal and for Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from emendo.arguments import checked
from emendo.io.former_names import LAYER_FIELDS, with_current_names

SHOWN_SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")

Rows: TypeAlias = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""


@checked
def layer_table(document: Mapping[str, Any]) -> Rows:
    """What the edit does to each layer; a column of no value, or of λ = 0, in every layer is left out.

    Args:
        document: As `emendo.report.folder.report_document` makes it.
    """
    null_space = document["method"]["settings"].get("preservation.null_space", "off") != "off"
    columns: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
        "layer": lambda layer: str(layer["layer"]),
        "‖ΔW‖": lambda layer: _figure(layer["update_norm"], ".3f"),
        "‖ΔW‖/‖W‖": lambda layer: _figure(layer["relative_norm"], ".4f"),
        "tr(ΔCΔᵀ)/tr(WCWᵀ)": lambda layer: _figure(layer["relative_cost"], ".2e"),
        "true drift / price": lambda layer: _figure(layer.get("drift_over_price"), ".2f"),
        "experts written": lambda layer: _of_all(layer, "experts_written", "experts"),
        "achieved": lambda layer: _figure(layer["achieved"], ".3f"),
        "kept by rounding": lambda layer: _rounded(layer.get("kept")),
        "interference": lambda layer: _figure(layer["interference"], ".4f"),
        "constraint error": lambda layer: _figure(_worst(layer, "constraint_error"), ".1e"),
        "effective λ": lambda layer: _figure(_first(layer, "effective_lambda"), "g"),
        "dimensions kept": lambda layer: _kept(layer) if null_space else None,
    }
    layers = [with_current_names(layer, LAYER_FIELDS) for layer in document["layers"]]
    rows = [[cell(layer) for cell in columns.values()] for layer in layers]
    plain = {"effective λ": "0"}  # equality, as memorization.s = 0 among the settings says already
    used = [i for i, name in enumerate(columns) if any(row[i] not in (None, plain.get(name)) for row in rows)]
    names = tuple(columns)
    return tuple(names[i] for i in used), [tuple(row[i] or "–" for i in used) for row in rows]


def score_table(judgement: Mapping[str, Any]) -> Rows:
    """Scores before and after in percent, with what is said beside them; metrics that are not defined are left out.

    Args:
        judgement: As `Judgement.to_dict` gives it.
    """
    before, after = judgement["before"]["scores"], judgement["after"]["scores"]
    rows = _score_rows(SHOWN_SCORES, before, after)
    if (said := judgement.get("said")) is not None:  # reports of earlier versions have none
        rows += _score_rows(tuple(name for name in said["after"]["counts"]), said["before"], said["after"])
    return ("metric", "before", "after", f"{after['bootstrap']['confidence']:.0%} interval after"), rows


def _score_rows(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name.replace("_", ", "), _percent(before[name]), _percent(after[name]), _interval(after["intervals"][name]))
        for name in names
        if after[name] is not None
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"


def target_table(document: Mapping[str, Any]) -> Rows:
    """What the target search did, request by request; the layer is named where several are searched.

    Args:
        document: As `emendo.report.folder.report_document` makes it.
    """
    # Each searched layer has one entry for every request, in the order of the requests.
    seen: Counter[int] = Counter()
    placed = []
    for trace in document["targets"]:
        placed.append((seen[trace["layer"]], trace))
        seen[trace["layer"]] += 1
    placed.sort(key=lambda entry: (entry[0], entry[1]["layer"]))
    several = len(seen) > 1
    header = ("subject", "target", *(("layer",) if several else ()), "NLL (nats)", "KL (nats)", "evaluations", "stop")
    rows = []
    for index, trace in placed:
        request = document["requests"][index]
        at = (str(trace["layer"]),) if several else ()
        figures = (f"{trace['nll']:.3f}", f"{trace['kl']:.3f}", str(trace["evaluations"]), trace["stopped"])
        rows.append((request["subject"], request["target"], *at, *figures))
    return header, rows


@checked
def training_table(document: Mapping[str, Any]) -> Rows:
    """What a baseline's training reached, request by request.

    Args:
        document: As `emendo.report.folder.report_document` makes it.
    """
    training = document["training"]
    rows: list[tuple[str, ...]] = [
        (request["subject"], request["target"], f"{nll:.3f}", "yes" if hit else "no")
        for request, nll, hit in zip(document["requests"], training["nll"], training["argmax"], strict=True)
    ]
    return ("subject", "target", "NLL (nats)", "most likely"), rows


def _figure(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _of_all(layer: Mapping[str, Any], part: str, whole: str) -> str | None:
    return f"{layer[part]} of {layer[whole]}" if layer.get(whole) is not None else None


def _rounded(kept: float | None) -> str | None:
    """What rounding leaves, where it takes anything that three digits show."""
    return None if kept is None or kept >= 0.9995 else f"{kept:.3f}"


def _worst(layer: Mapping[str, Any], name: str) -> float | None:
    return max((solved[name] for solved in layer["solves"]), default=None)


def _first(layer: Mapping[str, Any], name: str) -> float | None:
    return layer["solves"][0][name] if layer["solves"] else None


def _kept(layer: Mapping[str, Any]) -> str | None:
    """Directions that the null space leaves, which depends on C alone."""
    if not layer["solves"]:
        return None
    solved = layer["solves"][0]
    return f"{solved['dimensions']} of {solved['d_in']}"


@checked
def added_ridge_note(document: Mapping[str, Any]) -> str:
    """What dead units made necessary, in words; empty where there were none."""
    found = document.get("added_ridge")
    if not found:
        return ""
    told = ", ".join(f"layer {layer} {ridge:.1e}" for layer, ridge in found.items())
    return (
        "Preserved text leaves directions of the keys unused, as where units of a ReLU never fire, so C is singular; a "
        f"ridge of preservation.dead_ridge times its mean diagonal was added to it ({told})."
    )
