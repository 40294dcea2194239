"""Ctrl-C at any line of what writes a model: it holds what it held before or what it shall hold, and says which."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import emendo
from emendo.editing.session import EditSession
from emendo.errors import EmendoError
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.interrupts import SETTLING, WRITERS, Interrupter
from tests.model_state import changes, model_state
from tests.quick_plans import EIFFEL, JAPAN, quick_plan

pytestmark = pytest.mark.crash

LAYERS = (0, 1, 2)


class World:
    """A model with one update in it, and another that fits on top.

    Args:
        lm: The model.
        store: Of second moments.
        moves: Whether writing makes new tensors, beside a weight in few bits, so that addresses say nothing.
    """

    def __init__(self, lm: EditableModel, store: MomentStore, moves: bool = False) -> None:
        self.lm, self.session, self._moves = lm, EditSession(lm, store=store), moves
        self.first = self._update(JAPAN)
        self.session.apply(self.first)
        self.second = self._update(EIFFEL)
        self.states = [self._state([self.first, self.second][:held]) for held in range(3)]

    def reset(self) -> None:
        self.session.move_to([self.first])

    def _update(self, request: EditRequest) -> ModelUpdate:
        return quick_plan(self.session, [request], "memit", layers=list(LAYERS)).update

    def _state(self, updates: list[ModelUpdate]) -> dict[str, Any]:
        self.session.move_to(updates)
        return self.state

    @property
    def state(self) -> dict[str, Any]:
        found = model_state(self.lm)
        return {name: value for name, value in found.items() if not (self._moves and name == "storage")}

    def check(self, *possible: int) -> int:
        """The session says that it holds one of these numbers of updates, and they are in the model bit for bit."""
        claimed = len(self.session.applied_updates)
        assert claimed in possible
        assert changes(self.states[claimed], self.state) == []
        assert self.lm.holds_edits == bool(claimed)
        assert all(self.session.verify_rolled_back().values()) == (not claimed)
        if claimed:
            with pytest.raises(EmendoError, match="another session"):
                EditSession(self.lm)
        else:
            EditSession(self.lm)
        return claimed


@pytest.fixture(scope="module")
def world(store: MomentStore) -> World:
    return World(build_tiny("llama"), store)


@pytest.fixture(scope="module")
def mixture(store: MomentStore) -> World:
    """One parameter holds all experts of a layer."""
    return World(build_tiny("mixtral"), store)


@pytest.fixture(scope="module")
def few_bits(store: MomentStore, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Writing puts a module in the place of another."""
    pytest.importorskip("bitsandbytes")
    folder, plain = tmp_path_factory.mktemp("plain"), build_tiny("llama")
    plain.model.save_pretrained(folder)
    plain.tokenizer.save_pretrained(folder)
    return World(emendo.load(folder, device="cpu", load_in="nf4"), store, moves=True)


WORLDS = ("world", "mixture", "few_bits")
"""A model of each kind of edited map."""


def applied(world: World) -> None:
    with world.session.applied(world.second):
        pass


def at_base(world: World) -> None:
    with world.session.at_base():
        pass


CHANGES: dict[str, tuple[Callable[[World], object], tuple[int, int]]] = {
    "apply": (lambda world: world.session.apply(world.second), (1, 2)),
    "rollback": (lambda world: world.session.rollback(), (1, 0)),
    "move_to": (lambda world: world.session.move_to([world.first, world.second]), (1, 2)),
    "move_to nothing": (lambda world: world.session.move_to([]), (1, 0)),
    "applied": (applied, (1, 2)),
    "at_base": (at_base, (1, 0)),
}
"""What changes a model that holds one update, and how many updates it may hold if that is interrupted."""


def every(step: int = 1, **kwargs: Any) -> Iterator[Interrupter]:
    """One interrupter after another, until one finds the work done before its event comes."""
    at, last = 0, None
    while last is None or last.raised:
        last = Interrupter(at, **kwargs)
        yield last
        at += step


def test_every_module_that_is_said_to_write_does(request: pytest.FixtureRequest) -> None:
    """Interrupts in a module that is named and writes no more would try nothing."""
    ran: set[str] = set()
    for kind in WORLDS:
        world = request.getfixturevalue(kind)
        for change, _ in CHANGES.values():
            world.reset()
            uninterrupted = Interrupter(10**9)
            uninterrupted.run(lambda world=world, change=change: change(world))
            ran |= uninterrupted.ran
    assert ran == set(WRITERS.values())


@pytest.mark.parametrize("name", CHANGES)
def test_once_at_any_line_that_settles_what_is_held(name: str, world: World) -> None:
    change, possible = CHANGES[name]
    seen, lines = set(), 0
    for interrupter in every(1 if name in ("apply", "rollback", "applied") else 4, modules=SETTLING):
        world.reset()
        interrupter.run(lambda: change(world))
        seen.add(world.check(*possible))
        lines += interrupter.raised
    assert lines > 20
    if name not in ("applied", "at_base"):  # these end where they began
        assert len(seen) == 2


@pytest.mark.parametrize("again", [0, 7])
@pytest.mark.parametrize("name", CHANGES)
def test_once_more_while_the_first_is_dealt_with(name: str, again: int, world: World) -> None:
    change, possible = CHANGES[name]
    twice = 0
    for interrupter in every(5, again=again, modules=SETTLING):
        world.reset()
        interrupter.run(lambda: change(world))
        twice += interrupter.raised == 2
        world.check(*possible)
    assert twice


@pytest.mark.parametrize("kind", WORLDS)
@pytest.mark.parametrize("name", CHANGES)
def test_once_at_lines_of_all_that_writes(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    interrupted_everywhere(request.getfixturevalue(kind), name, 61)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORLDS)
@pytest.mark.parametrize("name", CHANGES)
def test_once_at_every_line_of_all_that_writes(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    interrupted_everywhere(request.getfixturevalue(kind), name, 1)


def interrupted_everywhere(world: World, name: str, step: int) -> None:
    change, possible = CHANGES[name]
    times = 0
    for interrupter in every(step):
        world.reset()
        interrupter.run(lambda: change(world))
        world.check(*possible)
        times += interrupter.raised
    assert times * step > 300


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_once_at_every_bytecode(name: str, world: World) -> None:
    change, possible = CHANGES[name]
    for interrupter in every(event="opcode", modules=SETTLING):
        world.reset()
        interrupter.run(lambda: change(world))
        world.check(*possible)


def test_what_was_interrupted_twice_holds_nobody_up(world: World) -> None:
    """Another thread's forward pass, evaluation and change go on; what reads the model first puts it in order."""
    world.reset()
    for interrupter in every(25, again=1, modules=SETTLING):
        interrupter.run(lambda: world.session.apply(world.second))
        found: list[object] = []

        def others(found: list[object] = found) -> None:
            world.lm.generate("The capital of Japan is", 1)
            found.append(world.session.applied_updates)
            world.session.rollback()
            with torch.no_grad():
                found.append(world.lm.model(torch.tensor([[1, 2, 3]])).logits)

        thread = threading.Thread(target=others, daemon=True)
        thread.start()
        thread.join(timeout=60)
        assert len(found) == 2
        assert changes(world.states[0], model_state(world.lm)) == []
        world.reset()


def test_planning_has_nothing_to_restore(world: World) -> None:
    """Some of the lines of a plan, spread over all of it."""
    world.reset()

    def plan() -> ModelUpdate:
        return quick_plan(world.session, [EIFFEL], "memit", layers=list(LAYERS)).update

    lines = Interrupter.lines_of(plan)
    assert lines > 1_000
    for at in range(0, lines, lines // 16):
        interrupter = Interrupter(at)
        interrupter.run(plan)
        assert interrupter.raised
        world.check(1)
    assert plan().id == world.second.id
