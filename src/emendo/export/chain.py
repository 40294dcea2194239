"""The updates that are exported together: checked against the model and each other, and summed layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.errors import ExportError, InputError
from emendo.models import EditableModel
from emendo.updates.against_model import check_update
from emendo.updates.predecessors import UNEDITED
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers


def checked_chain(lm: EditableModel, updates: Sequence[ModelUpdate]) -> tuple[LayerUpdate, ...]:
    """The stacked factors of updates that are applied one after the other, one entry a layer.

    Args:
        lm: The unedited model that they were made for.
        updates: In the order in which they were made, the first one planned on the unedited model.

    Raises:
        BaseMismatchError: One belongs to another model, or was planned on top of other updates than come before it.
        ExportError: There is none, or together they change no weight.
        InputError: The model holds edits: its weights are not those that the updates are relative to.
    """
    if lm.holds_edits:
        raise InputError(
            f"{lm.name!r} holds edits of a session, so its base weights are unknown here; call rollback() first"
        )
    if not updates:
        raise ExportError("there is no update to export; name at least one (--update FILE)")
    earlier = UNEDITED
    for update in updates:
        check_update(lm, update, earlier)
        earlier = earlier.then(update.id)
    merged = merge_layers([part for update in updates for part in update.layers])
    if not any(part.rank for part in merged):
        raise ExportError(
            "these updates change no weights, so there is nothing to export (the facts of in-context editing are put "
            "in front of prompts); expected an update of a method that edits weights, see `emendo methods`"
        )
    return tuple(part for part in merged if part.rank)
