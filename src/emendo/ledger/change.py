"""New states from old ones: a state without an edit, by replay or by algebra, and a folded one.

Everything here writes objects at most, which nothing refers to until the caller commits a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emendo.arguments.suggest import unknown_name
from emendo.errors import LedgerError
from emendo.ledger.edits import History, StoredEdit
from emendo.ledger.files import check_file
from emendo.ledger.record import Active
from emendo.ledger.replay import Planner, SessionPlanner, changed_environment, kept_method, seeded
from emendo.ledger.store import LedgerStore
from emendo.solve import PreparedLayer
from emendo.updates.fold import fold
from emendo.updates.removal import metric_layers, worked_out
from emendo.updates.update import ModelUpdate

HOW = ("replay", "algebraic")


@dataclass(frozen=True)
class State:
    """A state that could follow.

    Attributes:
        active: Its updates.
        details: What the record says about how it was reached.
    """

    active: Sequence[Active]
    details: Mapping[str, Any] = field(default_factory=dict)


def loaded(store: LedgerStore, active: Sequence[Active]) -> tuple[ModelUpdate, ...]:
    """The updates of a state, each compared with size, digest and identity first.

    Raises:
        LedgerError: An update file is missing, truncated or altered; names it.
    """
    return tuple(_loaded(store, entry) for entry in active)


def recalled(store: LedgerStore, active: Sequence[Active]) -> list[ModelUpdate]:
    """The updates of a state; those that are in memory, a session's for instance, are not read again."""
    return [store.updates.get(entry.update) or _loaded(store, entry) for entry in active]


def _loaded(store: LedgerStore, entry: Active) -> ModelUpdate:
    path = store.object_path(entry.file)
    check_file(path, entry.file, entry.size, "update file")
    update = ModelUpdate.load(path)
    if update.id != entry.update:
        raise LedgerError(f"update file {str(path)!r} holds {update.id[:12]}…, its record says {entry.update[:12]}…")
    store.updates[entry.update] = update
    return update


def stored(store: LedgerStore, update: ModelUpdate, edit: str | None = None, dropped: tuple[int, ...] = ()) -> Active:
    """Keep an update file.

    Args:
        store: Where.
        update: The update.
        edit: Id of the record that made the edit; None: the one that is about to be written.
        dropped: Requests of that record that are not in it.

    Raises:
        LedgerError: The file does not read back as the update.
    """
    file, size = store.put(update.save)
    entry = Active(edit, update.id, file, size, dropped)
    _loaded(store, entry)  # before a record may refer to it
    store.updates[entry.update] = update
    return entry


def without_edit(store: LedgerStore, history: History, gone: Sequence[str], planner: Planner | None, how: str) -> State:
    """The present state without some edits.

    Args:
        store: Where update files are.
        history: The records.
        gone: Ids of the edits.
        planner: Plans again what comes after them.
        how: One of `HOW`.

    Raises:
        LedgerError: A planner is needed and there is none, or this way is not open.
    """
    if how not in HOW:
        raise LedgerError(unknown_name("way to revert", how, HOW, "--how"))
    if how == "algebraic":
        return _without_by_algebra(store, history, gone, planner)
    kept, redo = history.split(history.active, lambda edit: edit.id in gone)
    return rewritten(store, kept, [edit for edit in redo if edit.id not in gone], planner)


def needs_planner(store: LedgerStore, history: History, gone: Sequence[str], how: str) -> bool:
    """Whether taking out these edits needs the model."""
    _, redo = history.split(history.active, lambda edit: edit.id in gone)
    if all(edit.id in gone for edit in redo):
        return False
    ids = [entry.edit for entry in history.active]
    if how != "algebraic" or gone[0] not in ids:
        return True
    return bool(metric_layers(loaded(store, history.active), ids.index(gone[0])))


def rewritten(store: LedgerStore, kept: Sequence[Active], redo: Sequence[StoredEdit], planner: Planner | None) -> State:
    """Plan edits again, in order, on top of what is kept; the planner's model ends in the new state.

    Args:
        store: Where update files go.
        kept: Updates that stay as they are.
        redo: Edits to plan again on top of them.
        planner: Plans them.
    """
    if planner is None:
        if redo:
            raise LedgerError(
                f"{len(redo)} later edit(s) have to be planned again without it, which needs the model; give a session "
                "(--model MODEL)"
            )
        return State(kept, _remade([]))
    planner.move_to(recalled(store, kept))
    again = [stored(store, planner.plan(edit), edit.id, edit.dropped) for edit in redo]
    changed = changed_environment(redo, planner.environment())
    return State([*kept, *again], {**_remade(again), "environment_changed": changed})


def _without_by_algebra(store: LedgerStore, history: History, gone: Sequence[str], planner: Planner | None) -> State:
    """The updates after an edit, corrected for its absence from their stored keys and values."""
    ids = [entry.edit for entry in history.active]
    if len(gone) != 1 or gone[0] not in ids:
        raise LedgerError("--how algebraic takes out one edit that was not folded; use --how replay")
    index = ids.index(gone[0])
    before, later = history.active[:index], history.active[index + 1 :]
    updates = loaded(store, history.active)
    layers = metric_layers(updates, index)
    metrics = _common_metrics(history.edits(later), layers, planner) if layers else {}
    left = worked_out(updates, index, metrics)
    if planner is not None:
        planner.move_to(left)
    new = [stored(store, update, old.edit, old.dropped) for update, old in zip(left[index:], later, strict=True)]
    remade = [
        {**row, "relative_change": update.info["algebraic"]["relative_change"]}
        for row, update in zip(_remade(new)["remade"], left[index:], strict=True)
    ]
    changed = changed_environment(history.edits(later), None if planner is None else planner.environment())
    return State([*before, *new], {"remade": remade, "environment_changed": changed})


def _remade(entries: Sequence[Active]) -> dict[str, Any]:
    return {"remade": [{"edit": entry.edit, "update": entry.update} for entry in entries]}


def _common_metrics(
    edits: Sequence[StoredEdit], layers: Sequence[int], planner: Planner | None
) -> dict[int, PreparedLayer]:
    """The preservation metrics of layers that all the edits were solved in.

    Raises:
        LedgerError: There is no session to get them from, or the edits have different ones.
    """
    if not isinstance(planner, SessionPlanner):
        raise LedgerError(
            "the later edits preserve earlier ones, so this needs second moments: give a session (--model)"
        )
    metrics: dict[int, PreparedLayer] = {}
    for edit in edits:
        method, edited = kept_method(edit)
        resolved = planner.session.resolve(method, layers=edited).on_engine()
        if resolved is None:
            raise LedgerError(f"edit {edit.id[:12]}… is a baseline and has no stored keys; use --how replay")
        with seeded(planner.session, edit.seed):
            found = planner.session.preservation(resolved.config)
        for layer in [layer for layer in layers if layer in found]:
            if metrics.setdefault(layer, found[layer]) is not found[layer]:
                raise LedgerError(
                    f"edit {edit.id[:12]}… preserves another second moment of layer {layer} than the edits before it; "
                    "use --how replay"
                )
    return metrics


def fold_state(store: LedgerStore, history: History, tolerance: float) -> State:
    """The state with one update in place of all.

    Raises:
        LedgerError: There is nothing to fold.
    """
    if not history.active:
        raise LedgerError("there is nothing to fold: no update is active")
    folded = fold(loaded(store, history.active), tolerance=tolerance)
    entry = stored(store, folded.update)
    details = {
        "tolerance": float(tolerance),
        "error": folded.error,
        "layers": [
            {"layer": layer.layer, "ranks": [layer.rank_before, layer.rank], "past_break_even": layer.past_break_even}
            for layer in folded.layers
        ],
        "bytes": [sum(old.size for old in history.active), entry.size],
    }
    return State([entry], details)
