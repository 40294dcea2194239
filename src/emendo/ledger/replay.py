"""Planning kept edits again: the same requests, method values and seed, on the model as it is now."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from emendo.editing.session import EditSession
from emendo.errors import LedgerError
from emendo.io.environment import changed_since, differing, environment
from emendo.io.former_names import METHOD_SETTINGS, with_current_names
from emendo.io.printable import well_formed
from emendo.ledger.edits import StoredEdit
from emendo.methods import ADDED_SETTINGS, Method, stored_method
from emendo.updates.update import ModelUpdate


@runtime_checkable
class Planner(Protocol):
    """Something with a model that plans kept edits again, one on top of the other."""

    def move_to(self, updates: Sequence[ModelUpdate]) -> None:
        """Bring the model to its base plus these updates."""

    def plan(self, edit: StoredEdit) -> ModelUpdate:
        """Plan an edit on the model as it is, and add it to the model."""

    def environment(self) -> dict[str, str]:
        """What can change a bit of a result: versions, device, threads, instruction set and math libraries."""


class SessionPlanner:
    """Plans with a session.

    Args:
        session: Its model is the base of the ledger.
    """

    def __init__(self, session: EditSession) -> None:
        self.session = session

    def move_to(self, updates: Sequence[ModelUpdate]) -> None:
        """Bring the session to these updates, without writing all anew where it has them, or all but the last."""
        now = self.session.applied_updates
        more = updates[len(now) :]
        if len(now) > len(updates) or len(more) > 1 or any(map(operator.is_not, now, updates)):
            self.session.move_to(updates)
        elif more:
            self.session.apply(more[0])

    def restore(self, updates: Sequence[ModelUpdate]) -> None:
        """Bring the session to these updates after an error, whatever it says that it has."""
        self.session.move_to(updates)

    def plan(self, edit: StoredEdit) -> ModelUpdate:
        """Plan an edit with its own seed, and apply it.

        Raises:
            LedgerError: The method, or the second moments, are no longer what they were.
        """
        method, layers = kept_method(edit)
        with seeded(self.session, edit.seed):
            update = self.session.plan(list(edit.requests.values()), method, layers=layers).update
        _require_same(edit, update)
        self.session.apply(update)
        return update

    def environment(self) -> dict[str, str]:
        """What computes in this process."""
        return environment_of(self.session)


def environment_of(session: EditSession) -> dict[str, str]:
    """What can change a bit of what a session computes, beside its model and its settings."""
    return {name: well_formed(value) for name, value in environment(str(session.lm.device)).items()}


def kept_method(edit: StoredEdit) -> tuple[Method, list[int] | None]:
    """The method or baseline of an edit with every value as it was, and its layers.

    Raises:
        LedgerError: A baseline that this Emendo does not have, or a setting that it no longer knows.
    """
    settings = _settings(edit.method)
    layers = settings.pop("layers", None) or None
    settings.pop("n_layers", None)
    try:
        return _on(stored_method(edit.method["name"], edit.method["source"], settings), layers), layers
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"edit {edit.id[:12]}… cannot be planned again: {error}. It was made with Emendo "
            f"{edit.environment.get('emendo', 'of another version')}; use that version, or --how algebraic"
        ) from error


def _on(method: Method, layers: Sequence[int] | None) -> Method:
    """The method with its layers inside: then it is no entry of a catalog, to which a preset would be applied."""
    return method if layers is None else replace(method, layers=tuple(layers))


def changed_environment(edits: Sequence[StoredEdit], now: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Where what computes now differs from what made the edits: then bits may differ too.

    Args:
        edits: The edits.
        now: As `Planner.environment` gives it; None: this process, on the device of each edit.

    Returns:
        By name, the value of the edits and the present one; what edits of an earlier Emendo did not record is said.
    """
    records = [edit.environment for edit in edits]
    if now is None:
        return changed_since(records)
    return {name: pair for made in records for name, pair in differing(made, now).items()}


def _settings(method: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a kept method, those that methods did not have then included, as they were in effect."""
    settings = with_current_names(method["settings"], METHOD_SETTINGS)
    return {**ADDED_SETTINGS, **settings} if "target.steps" in settings else settings


def _require_same(edit: StoredEdit, update: ModelUpdate) -> None:
    """Raise where a replay did not use what the edit used."""
    was, now = _settings(edit.method), _settings(update.info["method"])
    differ = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    if differ:
        raise LedgerError(
            f"edit {edit.id[:12]}… would be planned with another {differ[0]}: {now.get(differ[0])!r}, and it was made "
            f"with {was.get(differ[0])!r}; use the Emendo that made it ({edit.environment.get('emendo')}), or "
            "--how algebraic"
        )
    if fingerprint(update.info) != edit.moments:
        raise LedgerError(
            f"edit {edit.id[:12]}… was made with other second moments ({edit.moments[:12]}… and now "
            f"{fingerprint(update.info)[:12]}…): the text they come from has changed. Put it back, or --how algebraic"
        )


def fingerprint(info: dict[str, Any]) -> str:
    """Fingerprint of the second moments of a plan; empty where it has none."""
    return str((info.get("moments") or {}).get("fingerprint", ""))


@contextmanager
def seeded(session: EditSession, seed: int) -> Iterator[None]:
    """The session plans with that seed inside the context."""
    before = session.seed
    session.seed = seed
    try:
        yield
    finally:
        session.seed = before
