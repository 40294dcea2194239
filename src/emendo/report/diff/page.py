"""The page about two states of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emendo.io.versions import versions
from emendo.report.heat import Heat, group_of
from emendo.report.html import render

MOST = 200
"""Prompts that stand on the page; the JSON document has all."""

NAMED = 3
"""Edits that are named for a prompt."""

MOST_DRAWN = 20
"""Prompts whose KL is drawn token by token."""


def page(document: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        document: What differs.

    Raises:
        ReportError: jinja2 is not installed.
    """
    heat = token_heat(document)
    return render(
        "emendo.report.diff",
        "diff.html.j2",
        document=document,
        rows=[_row(row, document) for row in document["prompts"][:MOST]],
        left_out=max(0, len(document["prompts"]) - MOST),
        group=None if heat is None else group_of([heat]),
        drawn=MOST_DRAWN,
        emendo=versions()["emendo"],
    )


def token_heat(document: Mapping[str, Any]) -> Heat | None:
    """KL token by token for the prompts that differ most; None where every continuation has but one token."""
    rows = document["prompts"][:MOST_DRAWN]
    width = max(len(row["kl"]) for row in rows)
    if width < 2:
        return None
    return Heat(
        "KL in nats, by token of the first state's continuation",
        tuple((row["prompt"], False) for row in rows),
        tuple((*row["kl"], *[None] * (width - len(row["kl"]))) for row in rows),
        column="token",
        labels=tuple(str(n + 1) for n in range(width)),
    )


def _row(row: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    given = row["contributions"]
    return {
        **row,
        "sides": [
            {
                **row[side],
                "name": document[side]["name"],
                "same": row["common"],
                "other": row[side]["continuation"].removeprefix(row["common"]) or "(end)",
                "fires": _named(row[side]["firing"], document[side]["edits"], "firing"),
            }
            for side in ("first", "second")
        ],
        "carried": None
        if given is None
        else {
            "token": given["token"],
            "state": document[given["state"]]["name"],
            "edits": _named(given["edits"], document[given["state"]]["edits"], "nats"),
        },
    }


def _named(
    entries: Sequence[Mapping[str, Any]], edits: Sequence[Mapping[str, Any]], value: str
) -> list[dict[str, Any]]:
    return [
        {"label": edits[entry["edit"]]["label"], "value": entry[value], "only_here": edits[entry["edit"]]["only_here"]}
        for entry in entries[:NAMED]
    ]
