"""The layer loop against naive float64 reimplementations of the published ones, and what ties the methods together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.keys import EditActivations
from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.errors import ConflictError, InfeasibleError, MethodError
from emendo.methods import method_named
from emendo.methods.settings import KeySettings
from emendo.models import EditableModel
from emendo.progress import Silent
from emendo.requests import EditRequest
from emendo.solve import PreparedLayer
from emendo.solve.distribution import Distribution, distribution_steps, searched_layers
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.naive_loop import Naive, close
from tests.pairs import pairs
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK, REQUESTS, planned
from tests.reference import emmet_delta, memit_delta, rome_delta

FAMILIES = ("llama", "gpt2_square", "gptj", "gpt_neox")


# ---- the layer loop ------------------------------------------------------------------------------------------


def test_shares() -> None:
    def shares(distribution: Distribution, *layers: int) -> list[tuple[int, int, float | None]]:
        return [(step.layer, step.aim, step.share) for step in distribution_steps(distribution, layers)]

    assert shares("even", 2, 3, 5, 6) == [(2, 6, 1 / 4), (3, 6, 1 / 3), (5, 6, 1 / 2), (6, 6, 1.0)]
    assert shares("sqrt", 2, 3, 5, 6) == [(2, 6, 1 / 2), (3, 6, 3**-0.5), (5, 6, 2**-0.5), (6, 6, 1.0)]
    assert shares("ends", 2, 3, 5, 6) == [(2, 2, 1.0), (6, 6, 1.0)]
    assert shares("replay", 2, 3, 5) == [(2, 2, 1.0), (3, 3, 1.0), (5, 5, 1.0)]
    assert shares("optimal", 2, 3) == [(2, 3, None), (3, 3, None)]
    for distribution in ("single", "even", "sqrt", "ends", "replay", "optimal"):
        assert shares(distribution, 4) == [(4, 4, 1.0)]  # type: ignore[arg-type]
    assert searched_layers("ends", (2, 3, 5)) == (2, 5)
    assert searched_layers("replay", (2, 3, 5)) == (2,)
    assert searched_layers("optimal", (2, 3, 5)) == (5,)
    with pytest.raises(MethodError, match="--layers"):
        distribution_steps("single", (0, 1))


@pytest.mark.parametrize(("family", "weight"), pairs(FAMILIES, [15000.0, 0.5]))
def test_memit_is_the_published_layer_loop(family: str, weight: float, store: MomentStore) -> None:
    """Keys and what is still missing are read anew before each layer, in the model as the lower layers left it."""
    layers = [0, 1, 3]
    lm = build_tiny(family, dtype=torch.float64)
    plan = planned(lm, store, REQUESTS, "memit", layers, preservation__weight=weight, target__steps=4)
    naive = Naive(lm, plan.contexts)
    Z = search_values(lm, REQUESTS, plan.contexts, layers[-1], plan.method.config.target).value.double().T
    moments = {layer: naive.moment(layer, plan, store) for layer in layers}
    first_keys = torch.stack([naive.two_level(request, 3) for request in REQUESTS], dim=1)
    for position, (layer, part) in enumerate(zip(layers, plan.update.layers, strict=True)):
        K = torch.stack([naive.two_level(request, layer) for request in REQUESTS], dim=1)
        H = torch.stack([naive.present(request, layers[-1]) for request in REQUESTS], dim=1)
        delta = memit_delta(K, (Z - H) / (len(layers) - position), moments[layer], lam=weight)
        close(part.delta(), delta)
        naive.add(layer, delta)
    if weight < 1:
        moved = (K - first_keys).norm() / K.norm()
        assert moved > 1e-2, "keys of the last layer moved, so a loop that read them once would fail here"


@pytest.mark.parametrize("family", FAMILIES)
def test_emmet_over_several_layers_is_the_published_formula(family: str, store: MomentStore) -> None:
    layers = [1, 2]
    lm = build_tiny(family, dtype=torch.float64)
    plan = planned(lm, store, REQUESTS, "emmet", layers, distribution="even")
    naive = Naive(lm, plan.contexts)
    Z = search_values(lm, REQUESTS, plan.contexts, 2, plan.method.config.target).value.double().T
    moments = {layer: naive.moment(layer, plan, store) for layer in layers}
    for position, (layer, part) in enumerate(zip(layers, plan.update.layers, strict=True)):
        K = torch.stack([naive.two_level(request, layer) for request in REQUESTS], dim=1)
        H = torch.stack([naive.present(request, 2) for request in REQUESTS], dim=1)
        delta = emmet_delta(K, (Z - H) / (2 - position), moments[layer])
        close(part.delta(), delta)
        naive.add(layer, delta)


@pytest.mark.parametrize("family", FAMILIES)
def test_rome_has_the_direction_of_the_mean_key_and_holds_at_the_plain_one(family: str, store: MomentStore) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    plan = planned(lm, store, [EIFFEL], "rome", [1])
    naive = Naive(lm, plan.contexts)
    keys = naive.keys(EIFFEL, 1)
    value = search_values(lm, [EIFFEL], plan.contexts, 1, plan.method.config.target).value[0].double()
    residual = value - naive.at_subject(EIFFEL, "{}", 1, "mlp_out")
    delta = rome_delta(residual, keys.mean(dim=0), keys[0], naive.moment(1, plan, store))
    close(plan.update.layers[0].delta(), delta)
    wrong = rome_delta(residual, keys.mean(dim=0), keys.mean(dim=0), naive.moment(1, plan, store))
    assert float((delta - wrong).norm() / delta.norm()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_r_rome_uses_one_key_throughout(family: str, store: MomentStore) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    plan = planned(lm, store, [EIFFEL], "r-rome", [1])
    naive = Naive(lm, plan.contexts)
    mean = naive.keys(EIFFEL, 1).mean(dim=0)
    value = search_values(lm, [EIFFEL], plan.contexts, 1, plan.method.config.target).value[0].double()
    outs = torch.stack([naive.at_subject(EIFFEL, context, 1, "mlp_out") for context in plan.contexts])
    delta = rome_delta(value - outs.mean(dim=0), mean, mean, naive.moment(1, plan, store))
    close(plan.update.layers[0].delta(), delta)


# ---- how the methods hang together ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_even_over_one_layer_is_single(family: str, store: MomentStore) -> None:
    tiny = build_tiny(family)
    single = planned(tiny, store, REQUESTS, "emmet", [1])
    even = planned(tiny, store, REQUESTS, "emmet", [1], distribution="even")
    assert even.update.id == single.update.id


def test_one_request_of_emmet_is_r_rome_with_the_same_key_and_target(store: MomentStore) -> None:
    lm = build_tiny("llama")
    emmet = method_named("emmet")
    r_rome = replace(method_named("r-rome"), contexts=emmet.contexts, target=emmet.target, keys=KeySettings())
    session = EditSession(lm, store=store)
    plans = [session.plan([EIFFEL], method, layers=[1], settings=QUICK) for method in (emmet, r_rome)]
    assert plans[0].update.id == plans[1].update.id


@pytest.mark.parametrize(("n", "s", "expected"), [(1, 0.0, 0.0), (3, 0.1, 100.0)])
def test_emmet_as_published_is_memit(n: int, s: float, expected: float, store: MomentStore) -> None:
    """With α = 0.1 and weight 1000 it is MEMIT with λ = 100, except that a single request holds with equality."""
    lm, requests = build_tiny("llama"), REQUESTS[:n]
    published = planned(lm, store, requests, "emmet-published", [1], preservation__weight=1000)
    stats = published.layers[0].solves[0]
    assert (stats.s, stats.effective_lambda) == (s, pytest.approx(expected))
    same: dict[str, Any] = {"target__argmax_steps": None, "target__precision": "float32"}
    if n == 1:
        other = planned(lm, store, requests, "emmet", [1], **same)
    else:
        other = planned(lm, store, requests, "memit", [1], preservation__weight=100)
        assert stats.constraint_error > 1e-3, "least squares"
    close(published.update.layers[0].delta(), other.update.layers[0].delta())


def test_one_by_one_is_one_stage_and_a_batch_shows_its_own(store: MomentStore) -> None:
    told: list[str] = []

    class Recorder(Silent):
        def start(self, stage: str, total: int | None = None) -> None:
            told.append(f"{stage} {total}")

    lm = build_tiny("llama")
    for method in ("r-rome", "emmet"):
        session = EditSession(lm, store=store, progress=Recorder())
        session.plan(REQUESTS, method, layers=[1], settings={**QUICK, "moments.multiple": 4})
    shown = [stage for stage in told if not stage.startswith("second")]
    assert shown == ["edits 3", f"targets {3 * QUICK['target.steps']}", "solve 1"]


def test_one_by_one_computes_each_request_on_the_model_that_the_earlier_ones_left(store: MomentStore) -> None:
    lm = build_tiny("llama")
    batch = planned(lm, store, [EIFFEL, DARRIEUX], "rome", [1])
    session = EditSession(build_tiny("llama"), store=store)
    for row, request in enumerate([EIFFEL, DARRIEUX]):
        alone = session.plan([request], "rome", layers=[1], settings=QUICK)
        close(batch.update.layers[0].residuals[row : row + 1], alone.update.layers[0].residuals, 1e-4)
        close(batch.update.layers[0].dual_keys[row : row + 1], alone.update.layers[0].dual_keys, 1e-4)
        session.apply(alone.update)
    blind = planned(lm, store, [DARRIEUX], "rome", [1])
    apart = (blind.update.layers[0].residuals - batch.update.layers[0].residuals[1:]).norm()
    assert float(apart / batch.update.layers[0].residuals[1:].norm()) > 1e-2, "the order matters"
    assert [len(report.solves) for report in batch.layers] == [2]
    assert planned(lm, store, [DARRIEUX, EIFFEL], "rome", [1]).update.id != batch.update.id


def test_the_batch_size_of_the_search_changes_nothing_but_rounding(store: MomentStore) -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    together, alone = (planned(lm, store, REQUESTS, "emmet", [1], target__batch_size=n) for n in (32, 1))
    close(together.update.layers[0].delta(), alone.update.layers[0].delta(), 1e-5)
    assert [trace.stopped for trace in together.targets] == [trace.stopped for trace in alone.targets]


# ---- requests that collide -----------------------------------------------------------------------------------


def test_repeated_and_contradicting_requests_are_refused(store: MomentStore, tiny_llama: EditableModel) -> None:
    with pytest.raises(ConflictError, match=r"repeated: .*#1 → 'Rome', #3 → 'Rome'"):
        planned(tiny_llama, store, [EIFFEL, JAPAN, EIFFEL], "emmet", [1])
    with pytest.raises(ConflictError, match=r"contradicting: .*#1 → 'Rome', #2 → 'Tokyo'"):
        planned(tiny_llama, store, [EIFFEL, replace(EIFFEL, target="Tokyo")], "memit", [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_key_cannot_hold_two_values(dtype: torch.dtype, store: MomentStore) -> None:
    """Prompts that differ only after the subject have one key; with a value each, equality names who is in the way."""
    lm = build_tiny("llama", dtype=dtype)
    twins = [replace(EIFFEL, id="where"), replace(EIFFEL, prompt="{} was built in", target="Tokyo", id="when")]
    each = {"target__shared": "request"}
    with pytest.raises(InfeasibleError, match=r"share a key: where, when(.|\n)*--method memit"):
        planned(lm, store, [*twins, JAPAN], "emmet", [1], **each)
    for method in ("memit", "emmet-published"):
        plan = planned(lm, store, [*twins, JAPAN], method, [1], **each)
        assert float(plan.update.layers[0].delta().norm()) > 0


# ---- the record ----------------------------------------------------------------------------------------------


def test_the_report_of_a_layer_is_measured_on_the_update(store: MomentStore) -> None:
    lm = build_tiny("gpt2")
    plan = planned(lm, store, REQUESTS, "memit", [0, 1])
    for part, report in zip(plan.update.layers, plan.layers, strict=True):
        delta, weight = part.delta().double(), lm.weight(part.layer).double()
        moment = Naive(lm, plan.contexts).moment(part.layer, plan, store)
        assert report.update_norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert report.relative_norm == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        cost = torch.trace(delta @ moment @ delta.T) / torch.trace(weight @ moment @ weight.T)
        assert report.relative_cost == pytest.approx(float(cost), rel=1e-4)
    assert plan.update.info["layers"][0]["layer"] == 0
    assert [row["evaluations"] for row in plan.update.info["targets"]] == [len(t.losses) for t in plan.targets]
    assert set(plan.seconds) == {"contexts", "targets", "keys and solve", "measures"}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))


# ---- nothing twice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "layers", "reads"),
    [("memit", [1, 2], 3), ("emmet", [1], 1), ("emendo", [1, 2], 2), ("emendo", [1], 1)],
)
def test_keys_are_read_once_for_each_state_of_the_model(
    method: str, layers: list[int], reads: int, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memit on a model without a preset reads them once more, for its λ."""
    seen: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return read(*args, **kwargs)

    read = EditActivations.keys
    monkeypatch.setattr(EditActivations, "keys", counted)
    planned(build_tiny("llama"), store, REQUESTS, method, layers)
    assert len(seen) == reads


def test_a_history_is_remembered_only_for_an_edit_that_preserves_it(
    store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered: list[int] = []
    remembering = PreparedLayer.remembering

    def counted(layer: PreparedLayer, keys: Any, **kwargs: Any) -> PreparedLayer:
        remembered.append(1)
        return remembering(layer, keys, **kwargs)

    monkeypatch.setattr(PreparedLayer, "remembering", counted)
    session = EditSession(build_tiny("llama"), store=store)
    plan = planned(session, store, REQUESTS, "r-rome", [1], history__weight=1.0)
    assert len(remembered) == len(REQUESTS) - 1
    session.apply(plan.update)
    planned(session, store, [EditRequest("{} is calm in", "Bordeaux", "May")], "r-rome", [1], history__weight=1.0)
    assert len(remembered) == len(REQUESTS)
