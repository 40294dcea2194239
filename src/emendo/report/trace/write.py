"""From a trace to its folder: trace.safetensors, trace.json, trace.md, trace.png, trace.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.io import strict_json
from emendo.io.in_place import replaced_files
from emendo.io.printable import printable
from emendo.io.whole_file import write_bytes, write_text
from emendo.report.heat_picture import draw_heats
from emendo.report.line_picture import draw_panels
from emendo.report.packages import check_packages
from emendo.report.trace.heat import fact_heats
from emendo.report.trace.page import page
from emendo.report.trace.panels import average_panels
from emendo.report.trace.words import explain, fact_row, peaks
from emendo.tracing import Average, Trace, write_trace

NAME = "trace.safetensors"


@checked
def write_trace_report(folder: Path, trace: Trace) -> dict[str, str]:
    """Write a trace and everything that shows it, together: files that were there stay until all are written.

    Returns:
        The paths written, by kind.

    Raises:
        OutputError: The folder cannot be written.
        ReportError: A package of the extra `report` is missing.
    """
    check_packages()
    averages = trace.averages()
    names = {"page": "trace.html", "markdown": "trace.md", "picture": "trace.png", "json": "trace.json", "trace": NAME}
    with replaced_files(folder) as draft:
        write_text(draft / names["json"], strict_json.dumps(document(trace, averages), indent=1) + "\n")
        write_text(draft / names["markdown"], markdown(trace, averages))
        write_bytes(draft / names["picture"], picture(trace, averages))
        write_text(draft / names["page"], page(trace, averages))
        write_trace(draft / names["trace"], trace)
    return {kind: str(folder / name) for kind, name in names.items()}


def document(trace: Trace, averages: Sequence[Average]) -> dict[str, Any]:
    """The trace as one JSON document; cells that were not asked for are null."""
    return {
        "format": "emendo.trace",
        "version": 1,
        **trace.made,
        "averages": [average.to_dict() for average in averages],
        "facts": [
            {
                "prompt": fact.prompt,
                "subject": fact.subject,
                "answer": fact.answer,
                "said": fact.said,
                "tokens": list(fact.tokens),
                "classes": list(fact.classes),
                "clean": fact.high,
                "corrupted": float(fact.low.mean()),
                "total_effect": fact.total_effect,
                "checked": fact.checked,
                "effects": {kind: _rows(fact.effects(kind)) for kind in trace.kinds},
            }
            for fact in trace.facts
        ],
        "skipped": [{"fact": text, "reason": why} for text, why in trace.skipped],
    }


def markdown(trace: Trace, averages: Sequence[Average]) -> str:
    """The trace as Markdown: how it was made, the largest effects, a row for each fact."""
    lines = [f"# Causal trace of {len(trace.facts)} fact(s)", "", f"![{_shown(trace)}](trace.png)", ""]
    lines += [f"- **{name}**: {printable(text)}" for name, text in explain(trace)]
    lines += ["", "## Largest average effects", "", *(f"- {line}" for line in peaks(trace, averages)), ""]
    rows = [fact_row(fact, trace.kinds) for fact in trace.facts]
    lines += ["## Facts", "", _line(rows[0]), _line(["---"] * len(rows[0])), *(_line(row.values()) for row in rows), ""]
    if trace.skipped:
        lines += ["## Not traced", "", *(f"- {printable(why)}" for _, why in trace.skipped), ""]
    return "\n".join(lines)


def picture(trace: Trace, averages: Sequence[Average]) -> bytes:
    """The averages of several facts with their intervals, or the grids of one."""
    told = dict(explain(trace))
    note = f"measured: {told['Measured']}; corrupted by {told['Corrupted by']}"
    if len(trace.facts) > 1:
        title = f"Average indirect effects of {len(trace.facts)} facts, {trace.made['model']['name']}"
        return draw_panels(title, f"{note}; bars: 95 % intervals over facts", average_panels(trace, averages))
    fact = trace.facts[0]
    return draw_heats(f"{fact.text} → {fact.answer.strip()}", note, fact_heats(fact, trace.kinds))


def _shown(trace: Trace) -> str:
    """What is on the picture."""
    return "Average effects by layer" if len(trace.facts) > 1 else "Effects by token and layer"


def _line(cells: Any) -> str:
    return "| " + " | ".join(printable(str(cell)).replace("|", "\\|") for cell in cells) + " |"


def _rows(effects: Any) -> list[list[float | None]]:
    return [[float(v) if math.isfinite(v) else None for v in row] for row in effects]
