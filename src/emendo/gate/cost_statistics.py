"""Which second moments price an edit: those that it was planned with."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from emendo.editing.plan import Plan
from emendo.errors import CorpusError
from emendo.methods.settings import MomentSettings
from emendo.statistics.corpus import OWN_TEXT
from emendo.statistics.mixture import parse_mixture
from emendo.updates.update import ModelUpdate


def pricing(edit: Plan | ModelUpdate) -> tuple[MomentSettings | None, str]:
    """The second moments that an edit was planned with, which price it; or why there are none.

    Args:
        edit: A plan, or an update whose record names them.
    """
    if isinstance(edit, Plan):
        method = edit.method.on_engine()
        if method is not None:
            return method.config.moments, ""
        return None, f"{edit.method.config.name} is a baseline, which has no second moment"
    named = _recorded(edit, "moments.")
    try:
        settings = TypeAdapter(MomentSettings).validate_python(named)
    except ValidationError:
        named = {}
    if not named:
        return None, "the update's record names no second moment"
    # A file may come from anywhere: it does not get to name texts that are read or downloaded here.
    if not _own_text(settings.source):
        return None, f"the update was planned with second moments of {settings.source!r}, which are not read for a file"
    return settings, ""


def _own_text(source: str) -> bool:
    """Whether a source is text that the model writes itself, and nothing else."""
    try:
        return {part.source for part in parse_mixture(source)} <= OWN_TEXT
    except CorpusError:
        return False


def _recorded(update: ModelUpdate, prefix: str) -> dict[str, Any]:
    """Settings of one section that an update's record holds, whatever else is in it."""
    method = update.info.get("method")
    settings = method.get("settings") if isinstance(method, dict) else None
    rows = settings.items() if isinstance(settings, dict) else ()
    return {name.removeprefix(prefix): value for name, value in rows if str(name).startswith(prefix)}
