"""From a sweep beside a trace to a folder: layers.html, layers.md, layers.png, layers.json and the trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emendo.io import strict_json
from emendo.io.in_place import replaced_files
from emendo.io.printable import printable
from emendo.io.versions import versions
from emendo.io.whole_file import write_bytes, write_text
from emendo.report.html import render
from emendo.report.layers.panels import panels
from emendo.report.layers.words import explained, how, traced, verdict
from emendo.report.line_picture import draw_panels
from emendo.report.lines import placed
from emendo.report.packages import check_packages
from emendo.tracing import Trace, write_trace

PAGE = "layers.html"

TRACED = ("causal effect", "rank correlation with S over layers", "S behind the best when it alone is followed")
EXPLAINED = ("of an edit", "causal effect", "R² layer", "R² tracing", "R² both", "tracing adds")
SWEPT = ("layer", "S", "ES", "PS", "NS", "EA", "PA", "behind the best", "cost", "‖ΔW‖/‖W‖", "perplexity", "leverage")


def write_layers(folder: Path, document: Mapping[str, Any], trace: Trace) -> dict[str, str]:
    """Write the files, together: those that were there stay until all are written.

    Args:
        folder: Made where there is none.
        document: The sweep and the trace.
        trace: Kept as tensors, as `emendo trace` keeps it.

    Returns:
        The paths written, by kind.

    Raises:
        OutputError: The folder cannot be written.
        ReportError: A package of the extra `report` is missing.
    """
    check_packages()
    names = {"json": "layers.json", "markdown": "layers.md", "picture": "layers.png", "trace": "trace.safetensors"}
    title = f"Which layers take an edit: {document['model']['name']}"
    note = "; ".join(f"{name}: {text}" for name, text in how(document)[1:])
    with replaced_files(folder) as draft:
        write_text(draft / names["json"], strict_json.dumps(document, indent=1) + "\n")
        write_text(draft / names["markdown"], markdown(document))
        write_bytes(draft / names["picture"], draw_panels(title, note, panels(document)))
        write_trace(draft / names["trace"], trace)
        write_text(draft / PAGE, page(document))
    names["page"] = PAGE
    return {kind: str(folder / name) for kind, name in names.items()}


def page(document: Mapping[str, Any]) -> str:
    """The whole page."""
    return render(
        "emendo.report.layers",
        "layers.html.j2",
        name=document["model"]["name"],
        how=how(document),
        verdict=verdict(document),
        swept_head=SWEPT,
        swept=swept(document),
        traced_head=TRACED,
        traced=traced(document),
        explained_head=EXPLAINED,
        explained=explained(document),
        panels=[placed(panel) for panel in panels(document)],
        emendo=versions()["emendo"],
    )


def swept(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each place that could be edited."""
    rows = []
    for row in document["places"]:
        if row["error"] is not None:
            continue
        behind = row["behind"]
        ends = behind["interval"]
        rows.append(
            (
                row["name"] + (" (recommended)" if row["recommended"] else "") + (" *" if row["alike"] else ""),
                *(_figure(row["scores"].get(name), 1) for name in ("S", "ES", "PS", "NS", "EA", "PA")),
                f"{behind['value']:.1f}" + ("" if ends is None else f" [{ends[0]:.1f}, {ends[1]:.1f}]"),
                _figure(row["relative_cost"], 4),
                _figure(row["relative_norm"], 3),
                "–" if row["perplexity_ratio"] is None else f"× {row['perplexity_ratio']:.3f}",
                _figure(row["leverage"], 1),
            )
        )
    return rows


def markdown(document: Mapping[str, Any]) -> str:
    """The recommendation, the sweep, and what the trace would have said."""
    lines = [f"# Which layers take an edit: {printable(document['model']['name'])}", "", "![Panels](layers.png)", ""]
    lines += [f"- **{name}**: {printable(text)}" for name, text in how(document)]
    lines += ["", "## Recommendation", "", *(f"- {printable(line)}" for line in verdict(document))]
    for title, head, rows in (
        ("Sweep (* cannot be told from the best)", SWEPT, swept(document)),
        ("What the trace alone would say", TRACED, traced(document)),
        ("What explains an edit of one fact at one layer", EXPLAINED, explained(document)),
    ):
        lines += ["", f"## {title}", "", _line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"
