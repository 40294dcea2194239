"""An edit in one line: load the model, plan, apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emendo.arguments import Seed, checked
from emendo.editing.session import EditSession, Requests
from emendo.methods import DEFAULT_METHOD, Method
from emendo.models import EditableModel, load
from emendo.progress import Watched


@checked
def edit(
    model: str | EditableModel | EditSession,
    requests: Requests,
    method: str | Method = DEFAULT_METHOD,
    *,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: Seed = 0,
    device: str = "auto",
    dtype: str = "auto",
    progress: Watched = None,
) -> EditSession:
    """Write facts into a model, and give the session that holds them.

    ::

        session = emendo.edit("demo", {"prompt": "{} is in", "subject": "The Eiffel Tower", "target_new": "Rome"})
        session.lm.generate("The Eiffel Tower is in")
        session.rollback()

    Args:
        model: What `emendo.load` takes, a model from it or from `emendo.wrap`, or the session of an earlier edit, on
            top of which this one comes.
        requests: The facts to write, as `EditSession.plan` takes them.
        method: Name, file or config of a method or baseline.
        layers: Edited layers; None takes the preset for the model.
        settings: Values by dotted name.
        seed: Of sampled contexts and second moments; that of a session stays.
        device: Of a model that is loaded here.
        dtype: Of a model that is loaded here.
        progress: Told about every long stage; True: bars on the terminal or in the notebook.

    Returns:
        The session: `lm` is the edited model, `applied_updates` what was written, `rollback()` the way back.

    Raises:
        InputError: Model, requests, method, settings or layers cannot be used; the model is as it was.
        NumericalError: The weights would not be finite; the model is as it was.
    """
    if isinstance(model, EditSession):
        session = model
    else:
        lm = load(model, device=device, dtype=dtype, progress=progress) if isinstance(model, str) else model
        session = EditSession(lm, seed=seed, progress=progress)
    session.apply(session.plan(requests, method, layers=layers, settings=settings))
    return session
