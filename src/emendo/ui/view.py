"""What a desk found as HTML. Templates escape everything: text from models and files is text, never markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, TypeAlias

from emendo.report.html import STYLE, render

State: TypeAlias = Mapping[str, Any]

PANELS: dict[str, Callable[[State], dict[str, Any]]] = {
    "top": lambda state: {
        "model": state["model"],
        "ledger": state["ledger"],
        "active": sum(row["active"] for row in state["history"]),
    },
    "job": lambda state: {
        "jobs": state["jobs"],
        "running": any(job["state"] == "running" for job in state["jobs"]),
        "notice": state.get("notice", ""),
    },
    "asked": lambda state: {"asked": state.get("asked")},
    "draft": lambda state: {"draft": state["draft"]},
    "trace": lambda state: {"trace": state.get("trace")},
    "carried": lambda state: {"carried": state.get("carried")},
    "history": lambda state: {"history": state["history"]},
    "verified": lambda state: {"verified": state.get("verified")},
    "compared": lambda state: {"compared": state.get("compared")},
    "taken": lambda state: {"taken": state.get("taken", {}), "head": state["history"][0]["id"]},
    "commands": lambda state: {"commands": state["commands"]},
}
"""The panels of the page, and what the template of each is given."""

FOLLOWS = {"top": "history", "taken": ("taken", "history")}
"""Panels that change with something else on the board than what has their name."""


def panel(name: str, state: State) -> str:
    """One panel as HTML."""
    return drawn(name, **PANELS[name](state))


def drawn(name: str, **values: Any) -> str:
    """A template of this room."""
    return render("emendo.ui", f"{name}.html.j2", **values)


def version(name: str, state: State) -> Any:
    """What a panel changes with; equal values draw the same."""
    versions = state["versions"]
    if name == "job":
        return [state["jobs"][:1], [job["number"] for job in state["jobs"]], state.get("notice")]
    followed = FOLLOWS.get(name, name)
    return [versions.get(one, 0) for one in ([followed] if isinstance(followed, str) else followed)]


def style() -> str:
    """The style of the panels: that of all pages, kept to them, and what this page has besides."""
    shared = (resources.files("emendo.report") / "templates" / STYLE).read_text(encoding="utf-8")
    own = (resources.files("emendo.ui") / "templates" / "ui.css").read_text(encoding="utf-8")
    return f".em {{\n{shared}\n}}\n{own}"
