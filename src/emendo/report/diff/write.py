"""From two states to a folder: diff.html, diff.md, diff.json and, where there is more than one token, diff.png."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.io import strict_json
from emendo.io.in_place import replaced_files
from emendo.io.printable import printable
from emendo.io.whole_file import write_bytes, write_text
from emendo.report.diff.page import page, token_heat
from emendo.report.heat_picture import draw_heats
from emendo.report.packages import check_packages

PAGE = "diff.html"


@checked
def write_difference(folder: Path, document: Mapping[str, Any]) -> dict[str, str]:
    """Write the files, together: those that were there stay until all are written.

    Args:
        folder: Made where there is none.
        document: What differs.

    Returns:
        The paths written, by kind.

    Raises:
        OutputError: The folder cannot be written.
        ReportError: A package of the extra `report` is missing.
    """
    check_packages()
    names = {"json": "diff.json", "markdown": "diff.md"}
    with replaced_files(folder) as draft:
        write_text(draft / names["json"], strict_json.dumps(document, indent=1) + "\n")
        write_text(draft / names["markdown"], markdown(document))
        if (heat := token_heat(document)) is not None:
            names["picture"] = "diff.png"
            title = f"{document['first']['name']} against {document['second']['name']}"
            write_bytes(draft / names["picture"], draw_heats(title, heat.title, [heat]))
        write_text(draft / PAGE, page(document))
    names["page"] = PAGE
    return {kind: str(folder / name) for kind, name in names.items()}


def markdown(document: Mapping[str, Any]) -> str:
    """The prompts with both continuations, the largest difference first."""
    first, second = document["first"], document["second"]
    lines = [
        f"# {printable(first['name'])} against {printable(second['name'])}",
        "",
        f"{document['changed']} of {len(document['prompts'])} continuations differ. KL(first ‖ second) in nats; sorted "
        f"by the {document['order']}.",
        "",
        f"| prompt | KL next | KL continuation | {_cell(first['name'])} | {_cell(second['name'])} | fires most |",
        "|---|---|---|---|---|---|",
    ]
    for row in document["prompts"]:
        cells = [
            row["prompt"],
            f"{row['next_kl']:.3f}",
            f"{row['continuation_kl']:.3f}",
            row["first"]["continuation"],
            row["second"]["continuation"],
            fires_most(row, document),
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def fires_most(row: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """The edit that fires most at a prompt, of those that only one state has."""
    own = [
        (entry["firing"], document[side]["edits"][entry["edit"]]["label"])
        for side in ("first", "second")
        for entry in row[side]["firing"]
        if entry["only_here"]
    ]
    if not own:
        return "–"
    firing, label = max(own, key=lambda pair: abs(pair[0]))
    return f"{firing:+.2f} {label}"


def _cell(text: str) -> str:
    return printable(str(text).replace("\n", "⏎")).replace("|", "\\|")
