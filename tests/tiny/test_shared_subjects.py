"""Several facts on one subject: one key cannot hold two values, so the requests share one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.errors import InfeasibleError, MethodError
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.naive_loop import Naive, apart, close
from tests.quick_plans import DARRIEUX, JAPAN, planned
from tests.reference import emmet_delta

WHERE = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", id="where")
WHEN = EditRequest("{} was built in", "The Eiffel Tower", "Tokyo", id="when")
BATCH = [WHERE, JAPAN, WHEN, DARRIEUX]
SHARED: dict[str, Any] = {"target__shared": "subject"}
FAMILIES = ("llama", "gpt2_square", "gptj", "granite", "gemma2")


@pytest.mark.parametrize("contexts", ["none", "fixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equality_is_infeasible_alone_and_holds_together(family: str, contexts: str, store: MomentStore) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    session = EditSession(lm, store=store)
    with pytest.raises(InfeasibleError, match="share a key: where, when"):
        planned(session, store, BATCH, "emmet", [2], contexts__scheme=contexts, target__shared="request")
    plan = planned(session, store, BATCH, "emmet", [2], contexts__scheme=contexts, **SHARED)
    (part,) = plan.update.layers
    assert (part.rank, len(plan.targets)) == (3, 4)
    site = plan.method.config.target.site
    targets = search_values(lm, BATCH, plan.contexts, 2, plan.method.config.target)
    assert torch.equal(targets.value[0], targets.value[2])
    naive = Naive(lm, plan.contexts)
    keys = naive.mean_keys([WHERE, WHEN], 2)
    close(keys[:, 0], keys[:, 1])
    gained = (targets.value[0] - naive.present(WHERE, 2, site)) / (lm.mlp_scale if site == "resid_post" else 1)
    close(part.delta().double() @ keys[:, 0], gained)  # W' k = v at the mean key
    session.apply(plan.update)
    if contexts == "none":
        found = naive.values(BATCH, 2, site)
        close(found, targets.value.T)
        close(found[:, 0], found[:, 2])


def test_a_group_with_several_keys_holds_at_their_mean(store: MomentStore) -> None:
    """Where the subject does not open the prompts the keys differ; key and residual are the group's means."""
    lm = build_tiny("llama", dtype=torch.float64)
    inside = replace(WHEN, prompt="They say that {} was built in")
    batch = [WHERE, JAPAN, inside]
    plan = planned(lm, store, batch, "emmet", [2], **SHARED)
    naive = Naive(lm, plan.contexts)
    keys = naive.mean_keys(batch, 2)
    assert apart(keys[:, 0], keys[:, 2]) > 0.1
    value = search_values(lm, batch, plan.contexts, 2, plan.method.config.target).value.T
    mean = torch.tensor([[0.5, 0, 0.5], [0, 1, 0]], dtype=torch.float64).T
    missing = (value - naive.values(batch, 2)) @ mean
    delta = emmet_delta(keys @ mean, missing, naive.moment(2, plan, store))
    close(plan.update.layers[0].delta(), delta)
    own = planned(lm, store, batch, "emmet", [2])
    assert own.update.layers[0].rank == 3
    assert apart(own.update.layers[0].delta(), delta) > 1e-2


@pytest.mark.parametrize("distribution", ["even", "optimal", "ends", "replay"])
def test_groups_go_through_every_distribution(distribution: str, store: MomentStore) -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    session = EditSession(lm, store=store)
    settings = {"distribution": distribution, "contexts__scheme": "none", **SHARED}
    plan = planned(session, store, BATCH, "emmet", [1, 3], **settings)
    assert [part.rank for part in plan.update.layers] == [3, 3]
    targets = search_values(lm, BATCH, plan.contexts, 3, plan.method.config.target)
    naive = Naive(lm, plan.contexts)
    session.apply(plan.update)
    found = naive.values(BATCH, 3)
    close(found[:, 0], found[:, 2])
    if distribution != "replay":  # it searches at its first layer
        close(found, targets.value.T)


@pytest.mark.parametrize("method", ["memit", "emmet"])
def test_sharing_changes_nothing_where_no_subject_is_shared(method: str, store: MomentStore) -> None:
    lm = build_tiny("llama")
    batch = [WHERE, JAPAN, DARRIEUX]
    assert planned(lm, store, batch, method, [1], **SHARED).update.id == (
        planned(lm, store, batch, method, [1]).update.id
    )


@pytest.mark.parametrize("method", ["rome", "r-rome"])
def test_requests_written_one_by_one_cannot_share(method: str, store: MomentStore) -> None:
    with pytest.raises(MethodError, match="batching=joint"):
        planned(build_tiny("llama"), store, BATCH, method, [1], **SHARED)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
