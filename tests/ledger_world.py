"""A ledger without a model: updates whose bits follow from the requests, the seed and everything before them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from emendo.editing.session import EditSession
from emendo.ledger import EditLedger, StoredEdit
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate

BASE = {
    "name": "world",
    "model_type": "llama",
    "weights_sha256": "a" * 64,
    "tokenizer_sha256": "b" * 64,
    "dtype": "float32",
}
METHOD = {"name": "emmet", "source": "", "settings": {"layers": [1]}, "origins": {}}


def fact(number: int, target: str = "Rome") -> EditRequest:
    return EditRequest("{} is located in the city of", f"Tower {number}", target)


def planned(requests: Sequence[EditRequest], before: Sequence[ModelUpdate], seed: int = 0) -> ModelUpdate:
    """An update that depends on all that a real one depends on, bit for bit."""
    ids = [update.id for update in before]
    text = repr(([request.to_dict() for request in requests], ids, seed))
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
    n = len(requests)
    layers = tuple(
        LayerUpdate(
            layer,
            f"layers.{layer}.down",
            torch.randn(n, 3, generator=generator),
            torch.randn(n, 4, generator=generator),
            torch.randn(n, 4, generator=generator),
        )
        for layer in (1, 2)
    )
    info: dict[str, Any] = {
        "requests": [request.to_dict() for request in requests],
        "method": METHOD,
        "seed": seed,
        "moments": {"fingerprint": "c" * 64},
        "versions": {"emendo": "test"},
    }
    base = {name: value for name, value in BASE.items() if name != "dtype"}
    return ModelUpdate(layers, base, Predecessors.of(ids), info)


class WorldPlanner:
    """Plans like a session, in the world of `planned`."""

    def __init__(self) -> None:
        self.updates: list[ModelUpdate] = []

    def move_to(self, updates: Sequence[ModelUpdate]) -> None:
        ids = [update.id for update in updates]
        for count, update in enumerate(updates):
            assert update.preceding == Predecessors.of(ids[:count])
        self.updates = list(updates)

    def plan(self, edit: StoredEdit) -> ModelUpdate:
        self.updates.append(planned(list(edit.requests.values()), self.updates, edit.seed))
        return self.updates[-1]

    def environment(self) -> dict[str, str]:
        return {"emendo": "test"}


class WorldSession(WorldPlanner, EditSession):  # type: ignore[misc]
    """As much of an `EditSession` as a ledger asks for, in the world of `planned`."""

    def __init__(self) -> None:
        WorldPlanner.__init__(self)
        self.seed = 0
        self.lm = SimpleNamespace(dtype=torch.float32, device="cpu")

    @property
    def base(self) -> dict[str, str]:
        return {name: value for name, value in BASE.items() if name != "dtype"}

    @property
    def applied_updates(self) -> tuple[ModelUpdate, ...]:
        return tuple(self.updates)

    def plan(self, requests: Any, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(update=planned(requests, self.updates, self.seed))

    def apply(self, update: ModelUpdate) -> None:
        self.updates.append(update)


def replacing(ledger: EditLedger, request: EditRequest) -> WorldSession:
    """Put a fact in place of what the ledger has about it, in one record; gives the session."""
    session: Any = WorldSession()
    with ledger.editing(session, [request], replace=True) as pending:
        pending.commit(session.plan([request]).update)
    return session


def new_ledger(folder: Path, **options: Any) -> EditLedger:
    return EditLedger.create(folder, BASE, who="tester", **options)


def add(ledger: EditLedger, *requests: EditRequest, seed: int = 0) -> str:
    """Plan on the present state and commit; gives the id of the edit."""
    return ledger.commit_edit(planned(requests, ledger.updates(), seed)).id


def facts_of(ledger: EditLedger) -> list[str]:
    """Subjects of the active facts, in order."""
    return [request.subject for edit in ledger.history().edits() for request in edit.requests.values()]


def ledger_of(folder: Path, lm: EditableModel, updates: Sequence[ModelUpdate], model: str = "") -> EditLedger:
    """A ledger of a live model that holds updates, each with a fact of its own."""
    ledger = EditLedger.create(folder, {**lm.identity(), "dtype": "float32"}, model=model)
    for number, update in enumerate(updates):
        info = {"requests": [fact(number).to_dict()], "method": METHOD, "seed": 0}
        ledger.commit_edit(replace(update, info=info))
    return ledger
