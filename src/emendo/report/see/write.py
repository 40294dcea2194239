"""From what was found about edits to a folder: see.html, see.md, see.png, see.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.io import strict_json
from emendo.io.in_place import replaced_files
from emendo.io.printable import printable
from emendo.io.whole_file import write_bytes, write_text
from emendo.report.heat_picture import draw_heats
from emendo.report.packages import check_packages
from emendo.report.see.document import Seen
from emendo.report.see.page import answer_heat, crossing_heat, page

PAGE = "see.html"


@checked
def write_seen(folder: Path, seen: Seen, document: dict[str, Any]) -> dict[str, str]:
    """Write the files, together. Without a model there is no picture, whose package takes half a second.

    Args:
        folder: Made where there is none.
        seen: What was found.
        document: The same as JSON.

    Returns:
        The paths written, by kind.

    Raises:
        OutputError: The folder cannot be written.
        ReportError: A package of the extra `report` is missing.
    """
    pictured = seen.promoted is not None
    check_packages(pictures=pictured)
    names = {"json": "see.json", "markdown": "see.md"}
    heats = [answer_heat(seen, 0)] if seen.answers else [heat] if (heat := crossing_heat(seen)) else []
    with replaced_files(folder) as draft:
        write_text(draft / "see.json", strict_json.dumps(document, indent=1) + "\n")
        write_text(draft / "see.md", markdown(document))
        if heats and pictured:
            names["picture"] = "see.png"
            what = f"{seen.answers[0].prompt} → {seen.answers[0].answer}" if seen.answers else ", ".join(seen.sources)
            write_bytes(draft / "see.png", draw_heats(what, heats[0].title, heats))
        write_text(draft / PAGE, page(seen, document))
    names["page"] = PAGE
    return {kind: str(folder / name) for kind, name in names.items()}


def markdown(document: dict[str, Any]) -> str:
    """The edits, the firing on their prompts and the attributed answers as Markdown."""
    labels = [edit["label"] for edit in document["edits"]]
    lines = [f"# What {len(labels)} edit(s) do", "", "| edit | writes | ‖ΔW‖ |", "|---|---|---|"]
    for edit in document["edits"]:
        writes = "; ".join(str(request.get("target", "")) for request in edit["requests"][:3])
        lines.append(f"| {_cell(edit['label'])} | {_cell(writes)} | {edit['norm']:.3f} |")
    for answer in document["answers"]:
        lines += ["", f"## {printable(answer['prompt'])} → {printable(answer['answer'])}", ""]
        lines += [
            f"Log-probability {answer['before']:.3f} before, {answer['after']:.3f} after; contributions add up within "
            f"{abs(answer['error']):.1e} nats.",
            "",
            "| edit | contributes (nats) |",
            "|---|---|",
        ]
        order = sorted(range(len(labels)), key=lambda e: -abs(answer["by_edit"][e]))[:8]
        lines += [f"| {_cell(labels[e])} | {answer['by_edit'][e]:+.3f} |" for e in order]
    if document["probes"]:
        lines += ["", "## Firing on prompts", "", "| edit | kind | prompt | fires |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(labels[p['edit']])} | {p['kind']} | {_cell(p['prompt'])} | {p['firing']:+.3f} |"
            for p in document["probes"]
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return printable(str(text)).replace("|", "\\|")
