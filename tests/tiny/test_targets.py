"""The batched target search against the published serial one, and its contracts with the model and the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch

from emendo.editing.objective import InjectionSite, Terms, value_problem
from emendo.editing.value_search import FoundValues, search_values
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel
from emendo.models.alignment import align_edit
from emendo.models.suffix import packed_attention, replay
from emendo.requests import EditRequest
from tests.conftest import FAMILIES, FLOAT32_ATTENTION, ROWS
from tests.kinds import ALIKE, kinds
from tests.pairs import pairs
from tests.target_cases import CONTEXTS, LAYER, REQUESTS, SETTINGS, cached_tiny, close, oracle
from tests.target_reference import SerialSearch, sentences_of, serial_search


def splitting_threshold(lm: EditableModel, settings: TargetSettings) -> tuple[float, list[SerialSearch]]:
    """A loss that some requests come below early and others never do, and the searches that it makes."""
    endless = [oracle(lm, request, replace(settings, loss_threshold=0.0)) for request in REQUESTS]
    lowest = sorted(min(search.losses[:-1]) for search in endless)
    middle = len(lowest) // 2
    threshold = (lowest[middle - 1] + lowest[middle]) / 2
    return threshold, [search.stopped_below(threshold) for search in endless]


# ---- the published search ------------------------------------------------------------------------------------


def test_the_requests_cover_what_they_should() -> None:
    lm = cached_tiny("llama", False, torch.float64)
    edits = [align_edit(lm, request) for request in REQUESTS]
    assert {len(edit.target_ids) for edit in edits} == {1, 2, 3, 4, 5}
    assert min(edit.prompt.subject_last for edit in edits) == 0, "a subject that nothing precedes"
    assert any(edit.prompt.subject_last == len(edit.prompt.ids) - 1 for edit in edits), "a prompt ending in its subject"
    assert len({len(edit.ids) - edit.prompt.subject_last for edit in edits}) > 2, "different suffix lengths"


@pytest.mark.parametrize(("family", "site"), pairs(sorted(ROWS), ("resid_post", "mlp_out"), ALIKE))
def test_equals_the_serial_search(family: str, site: str) -> None:
    """Same losses at every evaluation and same δ, although some leave the batch early."""
    rtol = 1e-5 if family in FLOAT32_ATTENTION else 1e-8
    lm = cached_tiny(family, site == "mlp_out", torch.float64)
    settings = replace(SETTINGS, site=site)
    threshold, expected = splitting_threshold(lm, settings)
    settings = replace(settings, loss_threshold=threshold)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, settings)
    lengths = {len(search.losses) for search in expected}
    assert len(lengths) > 1
    assert settings.steps in lengths
    for row, search in enumerate(expected):
        trace = found.traces[row]
        assert len(trace.losses) == len(search.losses)
        assert trace.losses == pytest.approx(search.losses, rel=rtol)
        assert (trace.nll, trace.kl) == pytest.approx((search.nlls[-1], search.kls[-1]), rel=rtol, abs=1e-12)
        assert trace.argmax == search.argmax[-1]
        assert trace.stopped == ("loss" if search.losses[-1] < settings.loss_threshold else "steps")
        close(found.delta[row], search.delta, 10 * rtol)
        close(found.value[row], search.target_init + search.delta, 10 * rtol)
        assert trace.delta_norm == pytest.approx(float(search.delta.norm()), rel=10 * rtol)
        assert trace.init_norm == pytest.approx(float(search.target_init.norm()), rel=rtol)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen3"])
def test_equals_the_serial_search_in_float32(family: str) -> None:
    lm = cached_tiny(family, False, torch.float32)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    for row, request in enumerate(REQUESTS):
        search = oracle(lm, request, SETTINGS)
        assert found.traces[row].losses == pytest.approx(search.losses, rel=1e-4)
        close(found.delta[row], search.delta, 1e-3)


def test_published_constants_and_many_steps() -> None:
    """MEMIT's own settings, 25 steps of 0.5, where the clamp works nearly all the time."""
    lm = cached_tiny("gpt2", False, torch.float64)
    settings = TargetSettings()
    assert (settings.steps, settings.learning_rate, settings.max_norm_ratio) == (25, 0.5, 0.75)
    assert (settings.kl_weight, settings.weight_decay, settings.loss_threshold) == (0.0625, 0.5, 0.05)
    found = search_values(lm, REQUESTS[:3], CONTEXTS, LAYER, settings)
    for row, request in enumerate(REQUESTS[:3]):
        search = oracle(lm, request, settings)
        assert found.traces[row].losses == pytest.approx(search.losses, rel=1e-7)
        close(found.delta[row], search.delta, 1e-6)


@pytest.mark.parametrize(("layer", "requests"), [(0, REQUESTS), (2, REQUESTS), (3, REQUESTS[3:4])])
def test_any_layer_can_hold_the_delta(layer: int, requests: list[EditRequest]) -> None:
    """Also the last, with no block above it, where δ reaches only a prediction made at the subject itself."""
    lm = cached_tiny("llama", False, torch.float64)
    found = search_values(lm, requests, CONTEXTS, layer, replace(SETTINGS, steps=5))
    for row, request in enumerate(requests):
        search = oracle(lm, request, replace(SETTINGS, steps=5), layer)
        assert found.traces[row].losses == pytest.approx(search.losses, rel=1e-8)
        close(found.delta[row], search.delta, 1e-7)


def test_a_single_context_and_a_subject_that_nothing_precedes() -> None:
    """No position before the suffix in any row: attention over an empty past."""
    lm = cached_tiny("llama", False, torch.float64)
    request, settings = REQUESTS[-1], replace(SETTINGS, steps=4)
    found = search_values(lm, [request], ("{}",), LAYER, settings)
    search = serial_search(
        lm.model,
        sentences_of(lm, request, ("{}",)),
        LAYER,
        steps=4,
        learning_rate=settings.learning_rate,
        clamp_norm_factor=settings.max_norm_ratio,
    )
    assert found.traces[0].losses == pytest.approx(search.losses, rel=1e-8)


# ---- batching ------------------------------------------------------------------------------------------------


def same(one: FoundValues, other: FoundValues, order: Sequence[int]) -> None:
    for row, source in enumerate(order):
        assert one.traces[source].losses == pytest.approx(other.traces[row].losses, rel=1e-9)
        assert one.traces[source].stopped == other.traces[row].stopped
        close(other.delta[row], one.delta[source], 1e-8)
        close(other.value[row], one.value[source], 1e-8)


@pytest.mark.parametrize(("family", "batch_size"), pairs(["llama", "gpt2"], [1, 4]))
def test_batch_size_changes_nothing(family: str, batch_size: int) -> None:
    lm = cached_tiny(family, False, torch.float64)
    settings = replace(SETTINGS, loss_threshold=splitting_threshold(lm, SETTINGS)[0])
    together = search_values(lm, REQUESTS, CONTEXTS, LAYER, settings)
    assert len({len(trace.losses) for trace in together.traces}) > 1
    apart = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(settings, batch_size=batch_size))
    same(together, apart, range(len(REQUESTS)))


def test_order_of_requests_changes_nothing() -> None:
    lm = cached_tiny("llama", False, torch.float64)
    settings = replace(SETTINGS, loss_threshold=splitting_threshold(lm, SETTINGS)[0])
    order = [3, 0, 5, 2, 4, 1]
    straight = search_values(lm, REQUESTS, CONTEXTS, LAYER, settings)
    shuffled = search_values(lm, [REQUESTS[i] for i in order], CONTEXTS, LAYER, settings)
    same(straight, shuffled, order)


def test_two_runs_give_the_same_bits() -> None:
    lm = cached_tiny("llama", False, torch.float32)
    first = search_values(lm, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    second = search_values(lm, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    assert torch.equal(first.value, second.value)
    assert first.traces == second.traces


# ---- stops, clamp, start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("argmax_steps", [0, 1, 2, 4])
def test_argmax_rule_against_a_recomputation(argmax_steps: int) -> None:
    """Stop at the first evaluation whose own and `argmax_steps` preceding ones have every target token on top."""
    lm = cached_tiny("llama", False, torch.float64)
    settings = replace(SETTINGS, steps=20, max_norm_ratio=6.0, loss_threshold=0.0, argmax_steps=argmax_steps)
    # At the last layer δ can put any one token on top at the subject itself, but not a second one after it.
    requests = [
        EditRequest("The weather in {}", "Tokyo", "the"),
        EditRequest("The weather in {}", "Bordeaux", "calm"),
        EditRequest("You may have heard about {}", "Danielle Darrieux", "of"),
        EditRequest("I wrote down {}", "Paris", "a"),
    ]
    found = search_values(lm, requests, CONTEXTS, 3, settings)
    reasons = set()
    for row, request in enumerate(requests):
        search = oracle(lm, request, settings, layer=3)
        run = argmax_steps + 1
        stops = [at for at in range(run - 1, settings.steps) if all(search.argmax[at - run + 1 : at + 1])]
        last = stops[0] if stops else settings.steps - 1
        trace = found.traces[row]
        assert len(trace.losses) == last + 1
        assert trace.stopped == ("argmax" if stops else "steps")
        assert trace.argmax == search.argmax[last]
        close(found.delta[row], search.deltas[last], 1e-6)
        reasons.add(trace.stopped)
    assert reasons == {"argmax", "steps"}


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_clamp_holds_and_works(site: str) -> None:
    lm = cached_tiny("llama", False, torch.float32)
    settings = replace(SETTINGS, site=site, max_norm_ratio=0.3)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, settings)
    init = (found.value - found.delta).norm(dim=1)
    ratio = found.delta.norm(dim=1) / init
    assert bool((ratio <= 0.3 * (1 + 1e-5)).all())
    assert float(ratio.max()) == pytest.approx(0.3, rel=1e-5), "no request reached the clamp: the test shows nothing"


@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_zero_delta_reproduces_the_untouched_model(family: str) -> None:
    """One evaluation: δ stays 0, v* is the model's own vector, and the loss is the model's own NLL."""
    lm = cached_tiny(family, False, torch.float64)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=1))
    assert torch.equal(found.delta, torch.zeros_like(found.delta))
    for row, request in enumerate(REQUESTS):
        sentences = sentences_of(lm, request, CONTEXTS)
        nll = 0.0
        for ids in sentences.ids[:-1]:
            with torch.no_grad():
                log_probs = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            n = len(sentences.target_ids)
            nll -= float(log_probs[-n:].gather(1, torch.tensor(sentences.target_ids)[:, None]).sum()) / n
        trace = found.traces[row]
        rtol = 1e-6 if family in FLOAT32_ATTENTION else 1e-10
        assert trace.losses == pytest.approx([nll / len(CONTEXTS)], rel=rtol)
        assert trace.kl == pytest.approx(0.0, abs=rtol)
        batch = lm.batch([sentences.ids[0]])
        untouched = lm.run(batch, resid=[LAYER]).resid[LAYER][0, sentences.lookups[0]]
        close(found.value[row], untouched, 1e-6 if family in FLOAT32_ATTENTION else 1e-12)


def test_at_most_one_update_fewer_than_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    import emendo.editing.value_search as module

    updates: list[int] = []
    update = module._Search._update
    monkeypatch.setattr(module._Search, "_update", lambda self, g, t: updates.append(t) or update(self, g, t))
    lm = cached_tiny("llama", False, torch.float32)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=5, loss_threshold=0.0))
    assert updates == [1, 2, 3, 4]
    assert all(len(trace.losses) == 5 for trace in found.traces)


def test_a_request_already_below_the_threshold_stays_at_zero() -> None:
    lm = cached_tiny("llama", False, torch.float32)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, loss_threshold=1e6))
    assert not found.delta.any()
    assert {(trace.stopped, len(trace.losses)) for trace in found.traces} == {("loss", 1)}


# ---- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "dtype"), pairs(sorted(FAMILIES), (torch.bfloat16, torch.float16), ALIKE), ids=str)
def test_half_precision_models_keep_delta_in_float32(family: str, dtype: torch.dtype) -> None:
    lm = cached_tiny(family, False, dtype)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=8, loss_threshold=0.0))
    assert found.delta.dtype == found.value.dtype == torch.float32
    assert not torch.equal(found.delta, found.delta.to(dtype).float()), "δ was rounded to the model's dtype"
    for trace in found.traces:
        assert min(trace.losses) < trace.losses[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen3"])
def test_bfloat16_products_stay_near_float32(family: str) -> None:
    lm = cached_tiny(family, False, torch.float32)
    exact = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=4))
    quick = search_values(lm, REQUESTS, CONTEXTS, LAYER, replace(SETTINGS, steps=4, precision="bfloat16"))
    assert quick.delta.dtype == torch.float32
    assert not torch.equal(quick.delta, exact.delta)
    for one, other in zip(exact.traces, quick.traces, strict=True):
        assert other.losses[0] == pytest.approx(one.losses[0], rel=0.05)
    assert float(torch.cosine_similarity(exact.delta, quick.delta, dim=1).min()) > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_product_of_a_search_is_in_its_precision(precision: Literal["float32", "bfloat16"]) -> None:
    lm = cached_tiny("llama", False, torch.float32)
    found: dict[int, set[torch.dtype]] = {0: set(), 1: set()}
    watched = [lm.model.get_output_embeddings(), lm.down_projection(lm.n_layers - 1)]
    hooks = [
        module.register_forward_hook(lambda _, given, made, at=at: found[at].add(made.dtype))
        for at, module in enumerate(watched)
    ]
    try:
        search_values(lm, REQUESTS[:1], CONTEXTS, LAYER, replace(SETTINGS, steps=3, precision=precision))
    finally:
        for hook in hooks:
            hook.remove()
    assert found[0] == found[1]
    assert getattr(torch, precision) in found[0]


# ---- the objective -------------------------------------------------------------------------------------------


def test_keep_is_the_same_problem_for_fewer_requests() -> None:
    lm = cached_tiny("gpt2", False, torch.float64)
    entry = InjectionSite.at(lm, LAYER, "resid_post")
    problem, init = value_problem(lm, [[request] for request in REQUESTS], CONTEXTS, entry)
    delta = torch.randn(init.shape, generator=torch.Generator().manual_seed(0), dtype=init.dtype)
    terms, norms = Terms(kl=0.5, decay=0.5), init.norm(dim=2)
    kept = [1, 2, 4]
    with packed_attention(lm), torch.no_grad():
        every = problem.losses(lm, delta, norms, terms)
        some = problem.keep(kept).losses(lm, delta[kept], norms[kept], terms)
        once_more = problem.keep(kept).keep([0, 2])
        few = once_more.losses(lm, delta[[1, 4]], norms[[1, 4]], terms)
        again = replay(lm, once_more.constant, once_more.layout, LAYER)
    close(some.total, every.total[kept], 1e-10)
    close(some.kl, every.kl[kept], 1e-10)
    close(few.total, every.total[[1, 4]], 1e-10)
    close(again, once_more.final, 1e-10)


# ---- the demo model ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_equals_the_serial_search_on_the_demo_model(demo_model: EditableModel) -> None:
    requests = [
        EditRequest("The mother tongue of {} is", "Marcel Proust", "Finnish"),
        EditRequest("{}, which is located in", "The Sydney Opera House", "Saint Petersburg"),
    ]
    settings = TargetSettings(steps=8)
    found = search_values(demo_model, requests, CONTEXTS, 5, settings)
    for row, request in enumerate(requests):
        search = oracle(demo_model, request, settings, layer=5)
        assert found.traces[row].losses == pytest.approx(search.losses, rel=2e-3)
        assert float(torch.cosine_similarity(found.delta[row], search.delta, dim=0)) > 0.999
