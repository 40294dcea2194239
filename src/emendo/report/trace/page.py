"""The page of a trace: heat maps as SVG with a table behind each, averages first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.report.html import render
from emendo.report.trace.heat import Heat, average_heats, colour, fact_heats, legend, scale_of
from emendo.report.trace.words import explain, fact_row, peaks
from emendo.tracing import Average, Trace

MOST_FACTS = 20
"""Facts whose own heat maps stand on the page; all of them are in trace.safetensors and trace.json."""

_CELL, _LABEL, _TOP = (18, 22), 150, 20


def page(trace: Trace, averages: Sequence[Average]) -> str:
    """The whole page.

    Args:
        trace: The facts.
        averages: Over them.

    Raises:
        ReportError: jinja2 is not installed.
    """
    several = len(trace.facts) > 1
    mean_heats = average_heats(trace, averages) if several else []
    return render(
        "emendo.report.trace",
        "trace.html.j2",
        title=_title(trace),
        settings=explain(trace),
        peaks=peaks(trace, averages),
        averages=_group(mean_heats) if several else None,
        facts=[
            {"row": fact_row(fact, trace.kinds), "group": _group(fact_heats(fact, trace.kinds))}
            for fact in trace.facts[:MOST_FACTS]
        ],
        left_out=max(0, len(trace.facts) - MOST_FACTS),
        total=len(trace.facts),
        skipped=trace.skipped,
        kinds=trace.kinds,
        emendo=trace.made["versions"]["emendo"],
    )


def _title(trace: Trace) -> str:
    name = trace.made["model"]["name"]
    return f"{trace.facts[0].text} · {name}" if len(trace.facts) == 1 else f"{len(trace.facts)} facts in {name}"


def _group(heats: Sequence[Heat]) -> dict[str, Any]:
    """Heat maps under one scale, placed for the template."""
    scale = scale_of(heats)
    steps = legend(scale)
    return {
        "heats": [_placed(heat, scale) for heat in heats],
        "low": f"{scale[0]:+.3f}",
        "high": f"{scale[1]:+.3f}",
        "zero": 100 * (0 - scale[0]) / ((scale[1] - scale[0]) or 1),
        "steps": [shade for _, shade in steps],
    }


def _placed(heat: Heat, scale: tuple[float, float]) -> dict[str, Any]:
    width, height = _CELL
    cells = [
        {
            "x": _LABEL + width * layer,
            "y": _TOP + height * row,
            "fill": colour(value, scale),
            "name": f"{heat.rows[row][0]}, layer {layer}: {_number(value)}",
        }
        for row, values in enumerate(heat.values)
        for layer, value in enumerate(values)
    ]
    every = max(1, -(-heat.layers // 15))
    return {
        "title": heat.title,
        "cells": cells,
        "cell": {"width": width, "height": height},
        "rows": [
            {"text": text, "short": text if len(text) < 22 else text[:20] + "…", "subject": subject, "y": _y(row)}
            for row, (text, subject) in enumerate(heat.rows)
        ],
        "ticks": [{"x": _LABEL + width * (n + 0.5), "text": n} for n in range(0, heat.layers, every)],
        "label": _LABEL - 8,
        "width": _LABEL + width * heat.layers + 8,
        "height": _TOP + height * len(heat.rows) + 4,
        "best": _best(heat),
        "table": [
            {"text": text, "values": [_number(value) for value in values]}
            for (text, _), values in zip(heat.rows, heat.values, strict=True)
        ],
        "layers": range(heat.layers),
    }


def _y(row: int) -> float:
    return _TOP + _CELL[1] * (row + 0.68)


def _best(heat: Heat) -> str:
    found = [(v, r, c) for r, row in enumerate(heat.values) for c, v in enumerate(row) if v is not None]
    value, row, layer = max(found)
    return f"largest effect {value:+.3f} at {heat.rows[row][0]}, layer {layer}"


def _number(value: float | None) -> str:
    return "not asked for" if value is None else f"{value:+.4f}"
