"""New states from old ones: a state without an edit, by replay or by algebra, and a folded one.

Everything here writes objects at most, which nothing refers to until the caller commits a record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from emendo.errors import LedgerError, MethodError
from emendo.ledger.edits import History, KeptEdit
from emendo.ledger.files import check_file
from emendo.ledger.record import Active
from emendo.ledger.replay import Planner, SessionPlanner, changed_environment, kept_technique
from emendo.ledger.store import LedgerStore
from emendo.methods import ResolvedMethod
from emendo.solve import PreparedLayer, frobenius_norm
from emendo.suggest import unknown_name
from emendo.update import ModelUpdate, merge_layers

Fold: TypeAlias = Callable[[Sequence[ModelUpdate], float], ModelUpdate]

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
    """The updates of a state, each held against size, digest and identity first.

    Raises:
        LedgerError: An update file is missing, truncated or altered; names it.
    """
    return tuple(_loaded(store, entry) for entry in active)


def _loaded(store: LedgerStore, entry: Active) -> ModelUpdate:
    path = store.object_path(entry.file)
    check_file(path, entry.file, entry.size, "update file")
    update = ModelUpdate.load(path)
    if update.id != entry.update:
        raise LedgerError(f"update file {str(path)!r} holds {update.id[:12]}…, its record says {entry.update[:12]}…")
    return update


def stored(store: LedgerStore, update: ModelUpdate, edit: str | None = None, dropped: tuple[int, ...] = ()) -> Active:
    """Keep an update file.

    Args:
        store: Where.
        update: The update.
        edit: Id of the record that made the edit; None: the one that is about to be written.
        dropped: Requests of that record that are not in it.
    """
    file, size = store.put(update.save)
    return Active(edit, update.id, file, size, dropped)


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


def rewritten(store: LedgerStore, kept: Sequence[Active], redo: Sequence[KeptEdit], planner: Planner | None) -> State:
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
        return State(kept, {"replayed": []})
    planner.move_to(loaded(store, kept))
    again = [stored(store, planner.plan(edit), edit.id, edit.dropped) for edit in redo]
    changed = changed_environment(redo, planner.environment())
    replayed = [{"edit": entry.edit, "update": entry.update} for entry in again]
    return State([*kept, *again], {"replayed": replayed, "environment_changed": changed})


def _without_by_algebra(store: LedgerStore, history: History, gone: Sequence[str], planner: Planner | None) -> State:
    """The updates after an edit, corrected for its absence from their stored keys and values."""
    from emendo.undo import without

    ids = [entry.edit for entry in history.active]
    if len(gone) != 1 or gone[0] not in ids or not isinstance(planner, SessionPlanner):
        raise LedgerError("--how algebraic takes out one edit that was not folded, with a session; use --how replay")
    index = ids.index(gone[0])
    before, later = history.active[:index], history.active[index + 1 :]
    metrics = _common_metrics(history.edits(later), planner)
    updates = without(loaded(store, history.active), index, metrics) if later else ()
    planner.move_to([*loaded(store, before), *updates])
    new = [stored(store, update, old.edit, old.dropped) for update, old in zip(updates, later, strict=True)]
    return State([*before, *new], {"replayed": []})


def _common_metrics(edits: Sequence[KeptEdit], planner: SessionPlanner) -> dict[int, PreparedLayer]:
    """The preservation metrics that all the edits were solved in.

    Raises:
        LedgerError: They have none, or different ones.
    """
    metrics: dict[int, PreparedLayer] = {}
    for edit in edits:
        technique, layers = kept_technique(edit)
        resolved = planner.session.resolve(technique, layers=layers)
        if not isinstance(resolved, ResolvedMethod):
            raise LedgerError(f"edit {edit.id[:12]}… is a baseline and has no stored keys; use --how replay")
        for layer, metric in planner.session.preservation(resolved.config).items():
            if metrics.setdefault(layer, metric) is not metric:
                raise LedgerError(
                    f"edit {edit.id[:12]}… preserves another second moment of layer {layer} than the edits before it; "
                    "use --how replay"
                )
    return metrics


def fold_state(store: LedgerStore, history: History, tolerance: float, fold: Fold | None) -> State:
    """The state with one update in place of all.

    Raises:
        LedgerError: There is nothing to fold.
    """
    if not history.active:
        raise LedgerError("there is nothing to fold: no update is active")
    updates = loaded(store, history.active)
    folded = (fold or _default_fold())(updates, tolerance)
    if folded.preceding or folded.base != updates[0].base:
        raise MethodError("the fold has to give an update of the same base with nothing before it")
    entry = stored(store, folded)
    details = {
        "tolerance": tolerance,
        "relative_error": _relative_error(updates, folded),
        "bytes": [sum(old.size for old in history.active), entry.size],
        "ranks": [_rank(part for update in updates for part in update.layers), _rank(folded.layers)],
    }
    return State([entry], details)


def _default_fold() -> Fold:
    from emendo.compose import fold

    return fold


def _rank(parts: Any) -> int:
    return sum(part.rank for part in parts)


def _relative_error(updates: Sequence[ModelUpdate], folded: ModelUpdate) -> float:
    """Largest ‖ΔW_folded − ΣΔW‖_F / ‖ΣΔW‖_F of a layer."""
    worst = 0.0
    after = {part.layer: part for part in folded.layers}
    for before in merge_layers([part for update in updates for part in update.layers]):
        now = after[before.layer]
        residuals = torch.cat([before.residuals, -now.residuals])
        dual_keys = torch.cat([before.dual_keys, now.dual_keys])
        size = frobenius_norm(before.residuals, before.dual_keys)
        worst = max(worst, frobenius_norm(residuals, dual_keys) / size if size else 0.0)
    return worst
