"""Post-steps and reports of whole plans against dense computations: RECT, PRUNE and the cap on each layer's sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.methods import METHODS
from emendo.statistics import MomentStore
from emendo.updates.update import LayerUpdate
from tests.conftest import build_tiny
from tests.naive_loop import apart, close
from tests.pairs import covering, pairs
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, REQUESTS, planned
from tests.reference import prune_delta, rect_delta

LAYERS = [0, 1, 3]
FAR: dict[str, Any] = {"target__max_norm_ratio": 20.0, "target__learning_rate": 4.0}
STRONG: dict[str, Any] = {"preservation__weight": 0.1, **FAR}
"""Edits with singular values above those of the weights."""

Post = tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]
POSTS: dict[str, Post] = {
    "rect": ({"post__kind": "rect", "post__keep": 0.3}, lambda delta, W: rect_delta(delta, W, 0.3)),
    "prune": ({"post__kind": "prune", "post__log_base": 3.0}, lambda delta, W: prune_delta(delta, W, 3.0)),
    "cap": (
        {"post__kind": "cap", "post__max_ratio": 0.05},
        lambda delta, W: delta * min(1.0, 0.05 * float(W.norm() / delta.norm())),
    ),
}


def strong(method: str) -> dict[str, Any]:
    """`STRONG` for any method; under equality the weight would change nothing, and is refused."""
    return STRONG if METHODS[method].memorization.s > 0 else FAR


def keys_of(part: LayerUpdate) -> Tensor:
    assert part.keys is not None
    return part.keys.double()


def deltas(plan: Plan) -> dict[int, Tensor]:
    return {part.layer: part.delta().double() for part in plan.update.layers}


# ---- what a post-step is applied to ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method", "post"), covering(["llama", "gpt2_square"], ["memit", "r-rome"], list(POSTS))
)
def test_it_shapes_the_finished_sum_of_each_layer(family: str, method: str, post: str, store: MomentStore) -> None:
    """Nothing that is solved later sees it; for requests written one by one it is the sum that is shaped."""
    settings, expected = POSTS[post]
    layers = LAYERS if method == "memit" else [1]
    lm = build_tiny(family)
    raw = planned(lm, store, REQUESTS, method, layers, **strong(method))
    shaped = planned(lm, store, REQUESTS, method, layers, **strong(method), **settings)
    for layer, delta in deltas(raw).items():
        W = lm.weight(layer).double()
        close(deltas(shaped)[layer], expected(delta, W))
    assert max(apart(deltas(shaped)[layer], delta) for layer, delta in deltas(raw).items()) > 1e-2, "it does something"
    for part, other in zip(shaped.update.layers, raw.update.layers, strict=True):
        assert torch.equal(keys_of(part), keys_of(other)), "the keys stay those that were written"
    if method == "r-rome" and post != "rect":
        one_by_one = sum(
            expected(torch.outer(r, q).double(), lm.weight(1).double())
            for part in raw.update.layers
            for r, q in zip(part.residuals, part.dual_keys, strict=True)
        )
        assert apart(deltas(shaped)[1], one_by_one) > 1e-2, "shaping each request would show"


@pytest.mark.parametrize("pruned_before", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prune_conditions_everything_that_was_ever_added(
    dtype: torch.dtype, pruned_before: bool, store: MomentStore
) -> None:
    settings, expected = POSTS["prune"]
    lm = build_tiny("llama", dtype=dtype)
    base = {layer: lm.weight(layer).double() for layer in (0, 1)}
    session = EditSession(lm, store=store)
    first = planned(session, store, [EIFFEL, JAPAN], "memit", [0, 1], **STRONG, **(settings if pruned_before else {}))
    session.apply(first.update)
    raw = planned(session, store, [DARRIEUX], "memit", [0, 1], **STRONG)
    second = planned(session, store, [DARRIEUX], "memit", [0, 1], **STRONG, **settings)
    session.apply(second.update)
    for layer, W in base.items():
        before = deltas(first)[layer]
        total = expected(before + deltas(raw)[layer], W)
        close(before + deltas(second)[layer], total)
        assert apart(before + expected(deltas(raw)[layer], W), total) > 1e-3, "pruning the new part alone would show"
        if dtype is torch.float32:
            close(lm.weight(layer).double() - W, total, 1e-4)
    session.rollback()
    assert all(session.verify_rolled_back().values())


def test_prune_leaves_an_update_alone_that_needs_no_pruning(store: MomentStore) -> None:
    session = EditSession(build_tiny("llama"), store=store)
    for request in (EIFFEL, JAPAN, DARRIEUX):
        raw = planned(session, store, [request], "memit", LAYERS)
        plan = planned(session, store, [request], "prune", LAYERS)
        assert [part.rank for part in plan.update.layers] == [1, 1, 1]
        assert plan.update.id == raw.update.id
        session.apply(plan.update)


def test_pruned_updates_do_not_grow_with_their_number(store: MomentStore) -> None:
    """Each takes the earlier ones back and puts them in again; written out that would double with every update."""
    lm = build_tiny("llama")
    session, ranks = EditSession(lm, store=store), []
    for number in range(8):
        plan = planned(session, store, [REQUESTS[number % 3]], "prune", [1], **STRONG)
        session.apply(plan.update)
        ranks.append(plan.update.layers[0].rank)
    assert ranks[0] == 1
    assert 1 < max(ranks[1:]) <= min(lm.weight(1).shape), "some were pruned, and none is larger than its matrix"


# ---- what is reported ----------------------------------------------------------------------------------


def written(delta: Tensor, K: Tensor, R: Tensor) -> float:
    """Σ ⟨Δk, r⟩ / Σ ⟨r, r⟩ over requests, columns."""
    return float(((delta @ K) * R).sum() / (R * R).sum())


@pytest.mark.parametrize(("method", "post"), pairs(["emmet", "memit", "rome", "r-rome"], [None, *POSTS]))
def test_achieved_and_interference_are_measured_on_the_finished_update(
    method: str, post: str | None, store: MomentStore
) -> None:
    settings = {} if post is None else POSTS[post][0]
    layers = [0, 1] if method == "memit" else [1]
    session = EditSession(build_tiny("gptj"), store=store)
    firsts = []
    for request in (EIFFEL, JAPAN):
        firsts.append(planned(session, store, [request], "memit", [1], preservation__weight=0.1))
        assert firsts[0].layers[0].interference is None
        session.apply(firsts[-1].update)
    raw = planned(session, store, REQUESTS, method, layers, **strong(method))
    plan = planned(session, store, REQUESTS, method, layers, **strong(method), **settings)
    earlier = sum(deltas(first)[1] for first in firsts)
    past = torch.cat([keys_of(first.update.layers[0]) for first in firsts]).T
    for report, solved in zip(plan.layers, raw.update.layers, strict=True):
        delta = deltas(plan)[report.layer]
        K, R = keys_of(solved).T, solved.residuals.double().T
        assert report.achieved == pytest.approx(written(delta, K, R), rel=1e-5)
        if report.layer == 1:
            moved = float((delta @ past).norm() / (earlier @ past).norm())
            assert report.interference == pytest.approx(moved, rel=1e-5)
        else:
            assert report.interference is None
    if post is None and method == "emmet":
        assert plan.layers[0].achieved == pytest.approx(1.0, rel=1e-5)
    elif post is not None:
        assert plan.layers[-1].achieved != pytest.approx(raw.layers[-1].achieved, rel=1e-3), "the post-step shows"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
