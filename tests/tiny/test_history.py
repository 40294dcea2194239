"""Earlier edits as preserved keys, through sessions: against naive loops, over files, and back to nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.value_search import FoundValues, search_values
from emendo.errors import InputError
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.naive_loop import Naive, apart, close
from tests.pairs import pairs
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, REQUESTS, planned
from tests.reference import alphaedit_delta, emmet_delta, memit_delta

FAMILIES = ("llama", "gpt2_square", "gptj")
LAM = 0.5  # small enough that earlier keys count beside λC


def session_of(family: str, store: MomentStore, dtype: torch.dtype = torch.float64) -> EditSession:
    return EditSession(build_tiny(family, dtype=dtype), store=store)


def in_batches(
    session: EditSession, store: MomentStore, batches: Sequence[Sequence[EditRequest]], *args: Any, **more: Any
) -> list[Plan]:
    """Plan and apply, one batch after another."""
    plans = []
    for batch in batches:
        plans.append(planned(session, store, batch, *args, **more))
        session.apply(plans[-1].update)
    return plans


def total(plans: Sequence[Plan], layer: int) -> Tensor:
    """Everything that was written to a layer."""
    return sum(part.delta().double() for plan in plans for part in plan.update.layers if part.layer == layer)


# ---- against naive loops ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_sequential_memit_is_the_loop_with_earlier_keys(family: str, store: MomentStore) -> None:
    """λC + Σ K_p K_pᵀ, with the keys that the earlier batches were solved with, layer by layer."""
    layers, batches = [0, 2], [[EIFFEL], [DARRIEUX], [JAPAN]]
    given = {"preservation__weight": LAM, "target__steps": 4}
    plans = in_batches(session_of(family, store), store, batches, "memit-history", layers, **given)
    naive = Naive(build_tiny(family, dtype=torch.float64), plans[0].contexts)
    moments = {layer: naive.moment(layer, plans[0], store) for layer in layers}
    previous: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch, plan in zip(batches, plans, strict=True):
        Z = search_values(naive.lm, batch, plan.contexts, 2, plan.method.config.target).value.double().T
        for position, (layer, part) in enumerate(zip(layers, plan.update.layers, strict=True)):
            K, R = naive.mean_keys(batch, layer), (Z - naive.values(batch, 2)) / (len(layers) - position)
            past = torch.cat(previous[layer], dim=1) if previous[layer] else None
            delta = memit_delta(K, R, moments[layer], lam=LAM, previous=past)
            close(part.delta(), delta, 1e-4)
            if past is not None:
                assert apart(memit_delta(K, R, moments[layer], lam=LAM), delta) > 1e-2, "the history counts"
            assert part.keys is not None
            close(part.keys.T, K, 1e-4)
            previous[layer].append(K)
            naive.add(layer, delta)


@pytest.mark.parametrize("family", FAMILIES)
def test_alphaedit_is_its_published_solve_with_its_cache(family: str, store: MomentStore) -> None:
    batches, layer, settings = [[EIFFEL, DARRIEUX], [JAPAN]], 2, {"preservation__ridge": 0.1}
    lm = build_tiny(family, dtype=torch.float64)
    plain = planned(lm, store, REQUESTS, "memit", [layer])
    moment = Naive(lm, plain.contexts).moment(layer, plain, store)
    eigenvalues = torch.linalg.eigvalsh(moment)
    kept = len(eigenvalues) // 2
    settings["preservation__threshold"] = float(eigenvalues[kept - 1 : kept + 1].mean())
    plans = in_batches(session_of(family, store), store, batches, "alphaedit", [layer], **settings)
    naive, cache = Naive(lm, plain.contexts), torch.zeros_like(moment)
    for batch, plan in zip(batches, plans, strict=True):
        Z = search_values(lm, batch, plan.contexts, layer, plan.method.config.target).value.double().T
        K = naive.mean_keys(batch, layer)
        delta = alphaedit_delta(
            K,
            Z - naive.values(batch, layer),
            moment,
            threshold=settings["preservation__threshold"],
            l2=0.1,
            cache=cache,
        )
        close(plan.update.layers[0].delta(), delta, 1e-4)
        stats = plan.layers[0].solves[0]
        assert (stats.dimensions, stats.d_in) == (kept, len(moment))
        assert plan.update.info["layers"][0]["solves"][0]["dimensions"] == kept
        cache = cache + K @ K.T
        naive.add(layer, delta)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimal_split_prices_earlier_edits_too(family: str, store: MomentStore) -> None:
    """The default method in sequence: equality under A = C + Σ K_p K_pᵀ, whose leverages share out the layers."""
    layers, batches = [0, 2], [[EIFFEL, JAPAN], [DARRIEUX]]
    given = {"keys__average": "two_level", "target__precision": "float32"}
    plans = in_batches(session_of(family, store), store, batches, "emendo", layers, **given)
    naive = Naive(build_tiny(family, dtype=torch.float64), plans[0].contexts)
    metrics = {layer: naive.moment(layer, plans[0], store) for layer in layers}
    for batch, plan in zip(batches, plans, strict=True):
        Z = search_values(naive.lm, batch, plan.contexts, 2, plan.method.config.target).value.double().T
        before = {layer: naive.mean_keys(batch, layer) for layer in layers}
        D = {layer: K.T @ torch.linalg.inv(metrics[layer]) @ K for layer, K in before.items()}
        shares = {0: torch.linalg.inv(D[0] + D[2]) @ D[0], 2: torch.eye(len(batch), dtype=torch.float64)}
        for layer, part in zip(layers, plan.update.layers, strict=True):
            K, R = naive.mean_keys(batch, layer), (Z - naive.values(batch, 2)) @ shares[layer]
            delta = emmet_delta(K, R, metrics[layer])
            close(part.delta(), delta, 1e-4)
            metrics[layer] = metrics[layer] + K @ K.T
            naive.add(layer, delta)


# ---- sequential is one-shot where values are fixed ---------------------------------------------------


def fix_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has one v* for good, whatever the model holds when it is searched."""

    def fixed(lm: Any, requests: Sequence[EditRequest], contexts: Any, layer: int, *_: Any) -> FoundValues:
        rows = [
            torch.randn(lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
            for place in map(REQUESTS.index, requests)
        ]
        return FoundValues(layer, torch.stack(rows), torch.stack(rows), ())

    monkeypatch.setattr("emendo.editing.edit_run.search_values", fixed)


@pytest.mark.parametrize(("family", "s"), pairs(FAMILIES, [1.0, 0.25]))
def test_batches_in_any_order_add_up_to_one_shot(
    family: str, s: float, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the weight 1/s, where keys and values are fixed: one layer, whose own edits never move its keys.

    One context, so that what is missing is measured at the key itself.
    """
    fix_values(monkeypatch)
    given: dict[str, Any] = {"preservation__weight": 20, "memorization__s": s, "history__weight": 1 / s}
    given["contexts__scheme"] = "none"
    one_shot = total([planned(session_of(family, store), store, REQUESTS, "memit", [1], **given)], 1)
    orders = [[[request] for request in order] for order in itertools.permutations(REQUESTS)]
    for batches in [*orders[::2], orders[-1], [[EIFFEL, JAPAN], [DARRIEUX]], [[DARRIEUX], [JAPAN, EIFFEL]]]:
        close(total(in_batches(session_of(family, store), store, batches, "memit", [1], **given), 1), one_shot)
    for weight in (0.0, 2 / s):
        given["history__weight"] = weight
        there, back = (
            total(in_batches(session_of(family, store), store, order, "memit", [1], **given), 1)
            for order in (orders[0], orders[-1])
        )
        assert min(apart(there, one_shot), apart(back, one_shot)) > 1e-3
        assert apart(there, back) > 1e-3, "then the order matters"


def test_over_several_layers_the_order_matters(store: MomentStore) -> None:
    """There lower layers move the keys of upper ones, and the history holds the keys that were edited."""
    batches, given = [[EIFFEL], [DARRIEUX, JAPAN]], {"preservation__weight": LAM}
    there, back = (
        in_batches(session_of("llama", store), store, order, "memit-history", [0, 2], **given)
        for order in (batches, batches[::-1])
    )
    assert apart(total(there, 2), total(back, 2)) > 1e-2


# ---- where the history lives -------------------------------------------------------------------------


def test_the_history_travels_with_the_file(store: MomentStore, tmp_path: Path) -> None:
    session = session_of("llama", store, torch.float32)
    (first,) = in_batches(session, store, [[EIFFEL]], "memit-history", [0, 2], preservation__weight=LAM)
    second = planned(session, store, [DARRIEUX], "memit-history", [0, 2], preservation__weight=LAM)
    other = session_of("llama", store, torch.float32)
    loaded = ModelUpdate.load(first.update.save(tmp_path / "first.safetensors"))
    for part, original in zip(loaded.layers, first.update.layers, strict=True):
        assert part.keys is not None
        assert torch.equal(part.keys, original.keys)
    other.apply(loaded)
    assert planned(other, store, [DARRIEUX], "memit-history", [0, 2], preservation__weight=LAM).update.id == (
        second.update.id
    )
    without = planned(session, store, [DARRIEUX], "memit", [0, 2], preservation__weight=LAM)
    assert apart(without.update.layers[0].delta(), second.update.layers[0].delta()) > 1e-3


def test_rolling_back_empties_it(store: MomentStore) -> None:
    session, given = session_of("llama", store, torch.float32), {"preservation__weight": LAM}
    in_batches(session, store, [[EIFFEL], [JAPAN]], "memit-history", [0, 2], **given)
    session.rollback()
    again = planned(session, store, [DARRIEUX], "memit-history", [0, 2], **given)
    fresh = planned(session_of("llama", store, torch.float32), store, [DARRIEUX], "memit-history", [0, 2], **given)
    assert again.update.id == fresh.update.id
    without = planned(session, store, [DARRIEUX], "memit", [0, 2], **given)
    assert again.update.id == without.update.id, "no history is MEMIT"


def test_planning_adds_nothing_to_it(store: MomentStore) -> None:
    session, given = session_of("llama", store, torch.float32), {"preservation__weight": LAM}
    in_batches(session, store, [[EIFFEL]], "memit-history", [1], **given)
    first = planned(session, store, [DARRIEUX], "memit-history", [1], **given)
    planned(session, store, [JAPAN], "memit-history", [1], **given)
    assert planned(session, store, [DARRIEUX], "memit-history", [1], **given).update.id == first.update.id


def test_updates_of_other_methods_count_as_well(store: MomentStore) -> None:
    """The history is what the model holds, not what one method wrote."""
    session = session_of("llama", store)
    (first,) = in_batches(session, store, [[EIFFEL]], "rome", [1])
    plan = planned(session, store, [DARRIEUX], "memit-history", [1], preservation__weight=LAM)
    naive = Naive(session.lm, plan.contexts)
    (part,) = plan.update.layers
    K, clean = naive.mean_keys([DARRIEUX], 1), naive.keys(EIFFEL, 1)[0]
    assert first.update.layers[0].keys is not None
    close(first.update.layers[0].keys[0], clean)  # ROME holds at the plain prompt's key
    moment = build_naive_moment(plan, store)
    close(part.delta(), memit_delta(K, part.residuals.double().T, moment, lam=LAM, previous=clean[:, None]))


def build_naive_moment(plan: Plan, store: MomentStore) -> Tensor:
    """Second moments are those of the unedited model."""
    return Naive(build_tiny("llama", dtype=torch.float64), plan.contexts).moment(1, plan, store)


@pytest.mark.parametrize("method", ["memit-history", "encore", "emendo"])
def test_an_update_without_keys_is_refused(method: str, store: MomentStore) -> None:
    session = session_of("llama", store, torch.float32)
    made = [LayerUpdate(layer, session.lm.module_name(layer), torch.ones(1, 32), torch.ones(1, 48)) for layer in (1, 2)]
    solved = planned(session, store, [JAPAN], "emmet", [2]).update
    session.apply(ModelUpdate((made[0],), session.base))
    before = model_state(session.lm)
    with pytest.raises(InputError, match=r"none for layer 1; roll it back first.*history\.weight=0"):
        planned(session, store, [EIFFEL], method, [0, 1, 2])
    assert changes(before, model_state(session.lm)) == []
    assert max(part.rank for part in planned(session, store, [EIFFEL], method, [0, 2]).update.layers) == 1
    assert planned(session, store, [EIFFEL], method, [1], history__weight=0).layers[0].interference is None
    # One update with keys beside one without is still half a history.
    session.rollback()
    session.apply(solved)
    session.apply(ModelUpdate((made[1],), session.base, Predecessors.of([solved.id])))
    with pytest.raises(InputError, match="none for layer 2"):
        planned(session, store, [EIFFEL], method, [2])


@pytest.mark.parametrize("method", ["rome", "r-rome"])
def test_one_by_one_in_one_plan_is_one_plan_after_another(method: str, store: MomentStore) -> None:
    given: dict[str, Any] = {"history__weight": 1.0, "contexts__scheme": "fixed"}
    (batch,) = planned(session_of("llama", store), store, REQUESTS, method, [1], **given).update.layers
    parts = [
        plan.update.layers[0]
        for plan in in_batches(session_of("llama", store), store, [[r] for r in REQUESTS], method, [1], **given)
    ]
    without = planned(session_of("llama", store), store, REQUESTS, method, [1], contexts__scheme="fixed")
    for name in ("residuals", "dual_keys", "keys"):
        close(getattr(batch, name), torch.cat([getattr(part, name) for part in parts]), 1e-4)
    assert apart(without.update.layers[0].dual_keys, batch.dual_keys) > 1e-2, "the history counts"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
