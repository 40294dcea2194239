"""On a real, if tiny, model: algebra against replay, and the weights that a folded update gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import emendo.editing.edit_run
from emendo.editing.session import EditSession
from emendo.editing.value_search import FoundValues, search_values
from emendo.errors import BaseMismatchError, UndoError
from emendo.methods import ResolvedMethod
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.solve import prepare
from emendo.statistics import MomentStore, obtain_for_method
from emendo.updates.fold import fold
from emendo.updates.merge import merge
from emendo.updates.predecessors import Predecessors
from emendo.updates.removal import metric_layers, without
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK

ITALY = EditRequest("The capital of {} is", "Italy", "Tokyo")
FACTS = [EIFFEL, JAPAN, DARRIEUX, ITALY]
EXACT = {**QUICK, "target.precision": "float32"}
"""The search in full precision, so that nothing but what is measured differs."""


@contextmanager
def targets_kept(monkeypatch: pytest.MonkeyPatch, known: dict[Any, FoundValues]) -> Iterator[None]:
    """Inside the context a target that was once searched is not searched again."""

    def remembered(lm: EditableModel, requests: Sequence[EditRequest], contexts: Any, layer: int, *rest: Any) -> Any:
        key = tuple(request.text for request in requests), layer
        if key not in known:
            known[key] = search_values(lm, requests, contexts, layer, *rest)
        return known[key]

    with monkeypatch.context() as patched:
        patched.setattr(emendo.editing.edit_run, "search_values", remembered)
        yield


def session_of(store: MomentStore) -> EditSession:
    return EditSession(build_tiny("llama", dtype=torch.float64), store=store)


def edited(
    session: EditSession, facts: Sequence[EditRequest], method: str, layers: list[int], settings: dict[str, Any]
) -> list[ModelUpdate]:
    """One edit a fact, one after another."""
    updates = []
    for fact in facts:
        updates.append(session.plan([fact], method, layers=layers, settings=settings).update)
        session.apply(updates[-1])
    return updates


def by_algebra(
    session: EditSession, store: MomentStore, updates: Sequence[ModelUpdate], index: int, config: ResolvedMethod
) -> tuple[ModelUpdate, ...]:
    """Removal as a caller does it."""
    session.rollback()
    layers = config.config.written_layers
    moments, record = obtain_for_method(session.lm, layers, config.config.moments, store=store)
    needed = metric_layers(updates, index)
    metrics = {layer: prepare(moments[layer], config.config.preservation) for layer in needed}
    return without(updates, index, metrics, fingerprint=record["fingerprint"])


def total(updates: Sequence[ModelUpdate], layer: int) -> Tensor:
    return sum(part.delta().double() for update in updates for part in update.layers if part.layer == layer)


def apart(found: Sequence[ModelUpdate], wanted: Sequence[ModelUpdate]) -> float:
    """Relative Frobenius distance of all that is added to the weights."""
    layers = {part.layer for update in wanted for part in update.layers}
    square = sum(float((total(found, layer) - total(wanted, layer)).square().sum()) for layer in layers)
    return math.sqrt(square / sum(float(total(wanted, layer).square().sum()) for layer in layers))


def chained(updates: Sequence[ModelUpdate]) -> list[ModelUpdate]:
    chain: list[ModelUpdate] = []
    for update in updates:
        chain.append(replace(update, preceding=Predecessors.of(one.id for one in chain)))
    return chain


def removals(
    store: MomentStore,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    layers: list[int],
    index: int,
    **options: Any,
) -> tuple[tuple[ModelUpdate, ...], list[ModelUpdate], list[ModelUpdate]]:
    """The same edit removed by algebra, by replay with the same targets, and by plain subtraction."""
    session, settings = session_of(store), {**EXACT, **{name.replace("__", "."): v for name, v in options.items()}}
    known: dict[Any, FoundValues] = {}
    with targets_kept(monkeypatch, known):
        updates = edited(session, FACTS, method, layers, settings)
        resolved = session.resolve(method, layers=layers, settings=settings)
        assert isinstance(resolved, ResolvedMethod)
        found = by_algebra(session, store, updates, index, resolved)
        for update in updates[:index]:
            session.apply(update)
        again = edited(session, FACTS[index + 1 :], method, layers, settings)
    rest = chained([update for number, update in enumerate(updates) if number != index])
    return found, [*updates[:index], *again], rest


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("emmet", {}),
        ("memit", {"preservation__weight": 0.5}),
        ("memit-history", {"preservation__weight": 0.5}),
        ("emendo", {}),
        ("emendo", {"target__site": "mlp_out"}),
        (
            "alphaedit",
            {"preservation__threshold": 0.3, "preservation__null_space": "energy", "preservation__ridge": 10.0},
        ),
        ("r-rome", {"history__weight": 1.0, "target__site": "resid_post", "keys__residual": "plain"}),
        ("rome", {}),
    ],
)
def test_with_one_layer_and_the_same_targets_algebra_is_replay(
    method: str, options: dict[str, Any], store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of the one edited layer do not move and its output is linear in it: only storage in float32 is left."""
    found, replayed, subtracted = removals(store, monkeypatch, method, [2], 1, contexts__scheme="none", **options)
    assert apart(found, replayed) < 1e-5
    assert apart(subtracted, replayed) > 1e-3, "the later edits had to change"


@pytest.mark.parametrize("method", ["emendo", "memit-history"])
def test_with_several_layers_algebra_is_nearer_than_leaving_the_others_alone(
    method: str, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upper keys move with lower weights, which the algebra does not see."""
    options = {"contexts__scheme": "none", "preservation__weight": 0.5}
    found, replayed, subtracted = removals(store, monkeypatch, method, [0, 1, 2], 1, **options)
    assert apart(found, replayed) < apart(subtracted, replayed)


def test_the_result_goes_into_a_session_and_out_again(store: MomentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    found, *_ = removals(store, monkeypatch, "emendo", [0, 2], 0)
    session = session_of(store)
    for update in found:
        session.apply(update)
    assert [update.info["requests"][0]["subject"] for update in session.applied_updates] == [
        fact.subject for fact in FACTS[1:]
    ]
    session.rollback()
    assert all(session.verify_rolled_back().values())


def test_post_steps_and_baselines_are_refused(store: MomentStore) -> None:
    session = session_of(store)
    updates = edited(session, FACTS[:1], "memit", [2], EXACT)
    session.apply(session.plan([JAPAN], "rect", layers=[2], settings=EXACT).update)
    with pytest.raises(UndoError, match=r"post\.kind=rect"):
        without(session.applied_updates, 0, {})
    session.rollback()
    session.apply(updates[0])
    session.apply(session.plan([JAPAN], "ft", layers=[2]).update)
    with pytest.raises(UndoError, match="a baseline"):
        without(session.applied_updates, 0, {})


def test_a_folded_update_gives_the_weights_of_its_parts_within_the_tolerance(store: MomentStore) -> None:
    session = session_of(store)
    edited(session, FACTS, "emendo", [0, 2], EXACT)
    updates = session.applied_updates
    before = {layer: session.lm.weight(layer).double().clone() for layer in (0, 2)}
    session.rollback()
    original = {layer: session.lm.weight(layer).double().clone() for layer in (0, 2)}
    doubled = chained([*updates, *updates])  # more rows than rank
    for parts, factor, tolerance in ((updates, 1.0, 1e-6), (doubled, 2.0, 1e-6), (doubled, 2.0, 0.5)):
        folded = fold(parts, tolerance=tolerance)
        with session.applied(folded.update):
            for layer, weight in before.items():
                wanted = factor * (weight - original[layer])
                change = session.lm.weight(layer).double() - original[layer]
                # Rounding of the weights themselves is beside the tolerance.
                assert float((change - wanted).norm() / wanted.norm()) <= tolerance + 1e-6
        assert folded.rank[0] <= len(FACTS)
    assert folded.error > 1e-3


def test_a_merged_update_is_applied_where_its_parts_could_be(store: MomentStore) -> None:
    session = session_of(store)
    updates = edited(session, FACTS[:3], "emendo", [2], EXACT)
    wanted = session.lm.weight(2).clone()
    session.rollback()
    session.apply(merge(updates))
    torch.testing.assert_close(session.lm.weight(2), wanted, rtol=1e-6, atol=1e-6)
    session.rollback()
    later = merge(updates[1:])
    with pytest.raises(BaseMismatchError, match="planned on 1 update"):
        session.apply(later)
    session.apply(updates[0])
    session.apply(later)
    torch.testing.assert_close(session.lm.weight(2), wanted, rtol=1e-6, atol=1e-6)
