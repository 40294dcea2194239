"""Plans of a few requests on tiny models, with settings that take a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.statistics import MomentStore

EIFFEL = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
DARRIEUX = EditRequest("{}, a native speaker of", "Danielle Darrieux", "Tokyo")
JAPAN = EditRequest("The capital of {} is", "Japan", "Bordeaux")
REQUESTS = [EIFFEL, DARRIEUX, JAPAN]
QUICK: dict[str, Any] = {"target.steps": 2, "contexts.scheme": "fixed", "moments.multiple": 4}


def quick_plan(session: EditSession, requests: Sequence[EditRequest], method: str = "emmet", **kwargs: Any) -> Plan:
    """A quick plan in a session."""
    return session.plan(requests, method, settings=QUICK, **kwargs)


def planned(
    model: EditableModel | EditSession,
    store: MomentStore,
    requests: Sequence[EditRequest],
    method: str,
    layers: Sequence[int] | None = None,
    **more: Any,
) -> Plan:
    """A quick plan; settings are given with `__` for a dot."""
    session = model if isinstance(model, EditSession) else EditSession(model, store=store)
    settings = {**QUICK, **{name.replace("__", "."): value for name, value in more.items()}}
    return session.plan(requests, method, layers=layers, settings=settings)
