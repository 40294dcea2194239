"""The page about single edits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from emendo.io.versions import versions
from emendo.report.heat import Heat, group_of, shown_token, values_of
from emendo.report.html import render
from emendo.report.lines import Line, Panel, Point, placed
from emendo.report.see.document import Seen, mean_crossing

MOST_EDITS = 60
"""Edits whose firing at one another's keys is drawn."""

LARGEST = 8
"""Contributions of an answer that are listed."""


def page(seen: Seen, document: dict[str, Any]) -> str:
    """The whole page.

    Args:
        seen: What was found.
        document: The same as JSON.

    Raises:
        ReportError: jinja2 is not installed.
    """
    probes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for probe in document["probes"]:
        probes[probe["edit"]].append(probe)
    return render(
        "emendo.report.see",
        "see.html.j2",
        title=", ".join(seen.sources),
        base=document["base"],
        edits=document["edits"],
        labels=[edit["label"] for edit in document["edits"]],
        layers=document["layers"],
        crossing=_crossing(seen),
        crossing_most=MOST_EDITS,
        probes=probes,
        kinds=_kinds(document),
        answers=[answer_parts(seen, number, document) for number in range(len(seen.answers))],
        scan=document["scan"],
        model=seen.promoted is not None,
        rates=seen.base_rates is not None,
        emendo=versions()["emendo"],
    )


def crossing_heat(seen: Seen) -> Heat | None:
    """Firing of the first edits at one another's keys."""
    crossing = mean_crossing(seen.edits)
    if crossing is None or len(crossing) < 2:
        return None
    grid = crossing[:MOST_EDITS, :MOST_EDITS]
    rows = tuple((f"{n + 1} {edit.label}", False) for n, edit in enumerate(seen.edits.edits[:MOST_EDITS]))
    return Heat(
        "firing of the edit of each row at the key of each column",
        rows,
        values_of(grid),
        column="key",
        labels=tuple(str(n + 1) for n in range(len(grid))),
    )


def answer_heat(seen: Seen, number: int) -> Heat:
    """Contributions to an answer by layer and token, all edits together."""
    found = seen.answers[number].found
    grid = found.parts.sum(dim=-1)
    return Heat(
        "contribution of all edits, in nats",
        tuple((f"layer {layer}", False) for layer in seen.edits.layers),
        values_of(grid.numpy()),
        column="token",
        labels=tuple(shown_token(token) for token in found.tokens),
    )


def lens_panel(lens: dict[str, Any], answer: str) -> Panel:
    """The answer's first token read off every layer, without the edits and with them."""
    lines = tuple(
        Line(
            name,
            tuple(
                Point(layer, share, name=f"{layer} (most likely: {shown_token(top)})")
                for layer, (share, top) in enumerate(zip(lens[values], lens[tops], strict=True))
            ),
        )
        for name, values, tops in (
            ("without the edits", "before", "top_before"),
            ("with them", "after", "top_after"),
        )
    )
    title = f"Logit lens: probability of the first token of {answer.strip()!r} after each layer"
    return Panel(title, lines, "", "layer", (0.0, float(len(lens["before"]) - 1)))


def _crossing(seen: Seen) -> dict[str, Any] | None:
    heat = crossing_heat(seen)
    return None if heat is None else group_of([heat])


def answer_parts(seen: Seen, number: int, document: dict[str, Any]) -> dict[str, Any]:
    """One attributed answer for a template: its rows, its heat map and its lens.

    Args:
        seen: What was found.
        number: Of the answer.
        document: All of it as JSON.
    """
    row, answer = document["answers"][number], seen.answers[number]
    left = {entry["edit"]: entry["change"] for entry in row["left_out"]}
    firing = np.nan_to_num(answer.found.firing.mean(dim=0).numpy(), nan=0.0)
    largest = sorted(range(len(row["by_edit"])), key=lambda e: -abs(row["by_edit"][e]))[:LARGEST]
    return {
        **row,
        "group": group_of([answer_heat(seen, number)]),
        "lens": placed(lens_panel(row["lens"], row["answer"])),
        "largest": [
            {
                "label": document["edits"][e]["label"],
                "contribution": row["by_edit"][e],
                "direct": None if row["direct"] is None else row["direct"][e],
                "left_out": left.get(e),
                "firing": float(firing[:, e].max()),
                "token": shown_token(answer.found.tokens[int(firing[:, e].argmax())]),
            }
            for e in largest
        ],
    }


def _kinds(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean firing by kind of prompt: of the edit that the prompt belongs to, and of the strongest other one."""
    found = []
    for kind in ("own", "paraphrase", "neighbor"):
        rows = [probe for probe in document["probes"] if probe["kind"] == kind]
        if rows:
            others = [abs(probe["other"]["firing"]) for probe in rows if probe["other"] is not None]
            found.append(
                {
                    "kind": kind,
                    "n": len(rows),
                    "own": sum(probe["firing"] for probe in rows) / len(rows),
                    "other": sum(others) / len(others) if others else None,
                }
            )
    return found
