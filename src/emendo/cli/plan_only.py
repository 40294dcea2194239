"""`emendo edit --plan-only`: every setting with its origin, and how each request is read; nothing is edited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emendo.cli.catalog import show_method
from emendo.cli.console import Terminal, shortened
from emendo.cli.footprint import show_footprint

if TYPE_CHECKING:
    from emendo.editing.session import EditSession
    from emendo.methods import MethodConfig
    from emendo.requests import EditRecord

_MOST_SHOWN, _MOST_NAMED, _MOST_CHARACTERS = 20, 5, 100
"""Requests in the table of a plan, requests that a note names, characters of a cell."""


def show_plan(
    terminal: Terminal,
    session: EditSession,
    records: list[EditRecord],
    method: dict[str, Any],
    config: MethodConfig | None,
) -> None:
    """What would be done: every setting with its origin, how each request is read, what it takes.

    Args:
        terminal: Where it is shown.
        session: Holds the model.
        records: As the model is asked them, see `Method.evaluation_prompts`.
        method: As `to_dict` of a resolved method or baseline gives it.
        config: The method, if it is one of the engine.
    """
    from emendo.editing.plan import question_warning
    from emendo.editing.sharing import refuse_contradictions, share_groups
    from emendo.models.alignment import align_edit

    lm = session.lm
    shared = method["settings"].get("target.shared")
    requests = [record.request for record in records]
    groups = share_groups(lm, requests, shared) if shared else []
    refuse_contradictions(lm, requests, groups)
    read = []
    terminal.start("requests", len(records))
    for record in records:
        terminal.advance()
        edit = align_edit(lm, record.request)
        read.append(
            {
                **record.request.to_dict(),
                "subject_last_token": lm.decode([edit.prompt.ids[edit.prompt.subject_last]]),
                "target_tokens": [lm.decode([token]) for token in edit.target_ids],
            }
        )
    terminal.finish()
    show_method(terminal, method["name"], method)
    _show_requests(terminal, records, read)
    for note in question_warning(lm, requests):
        terminal.line(f"Note: {note}")
    _show_groups(terminal, records, groups, shared)
    takes = None if config is None else show_footprint(terminal, lm, config, len(records))
    terminal.line("Nothing was edited (--plan-only).")
    document = {"plan_only": True, "base": session.base, "method": method, "requests": read, "groups": groups}
    document |= {"footprint": takes}
    terminal.result(document)


def _show_groups(terminal: Terminal, records: list[EditRecord], groups: list[list[int]], shared: str) -> None:
    """Requests that share one value, where any do."""
    why = "the same key: their prompts are equal up to the subject's end" if shared == "key" else "one subject"
    rows = []
    for group in groups:
        if len(group) > 1:
            told = (f"{records[index].request.text} → {records[index].request.target}" for index in group)
            rows.append(("\n".join(shortened(line, _MOST_CHARACTERS) for line in told),))
    if rows:
        terminal.table(f"Requests that share one value ({why})", ("searched together",), rows[:_MOST_SHOWN])
        if len(rows) > _MOST_SHOWN:
            terminal.line(f"and {len(rows) - _MOST_SHOWN} more groups (--json has all)")


def _show_requests(terminal: Terminal, records: list[EditRecord], read: list[dict[str, Any]]) -> None:
    """The first requests as the model reads them, and what is odd about any of them."""
    rows = (
        (r["subject"], repr(r["subject_last_token"]), str(r["target_tokens"]), r["prompt"]) for r in read[:_MOST_SHOWN]
    )
    terminal.table(
        "Requests as the model reads them",
        ("subject", "last subject token", "target tokens", "prompt"),
        ([shortened(cell, _MOST_CHARACTERS) for cell in row] for row in rows),
    )
    if len(read) > _MOST_SHOWN:
        terminal.line(f"and {len(read) - _MOST_SHOWN} more (--json has all)")
    from emendo.requests import same_text

    known = [r.request.label for r in records if r.target_true and same_text(r.target_true) == r.request.answer]
    if known:
        more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
        told = ", ".join(shortened(label, _MOST_CHARACTERS) for label in known[:_MOST_NAMED])
        terminal.line(f"Note: target and target_true are the same, so there is nothing to change, for {told}{more}.")
