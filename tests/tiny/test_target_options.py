"""Options of the target search: where δ enters, joint attention, end of text, shared and anchored targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from emendo.editing.keys import current_values, forward_values
from emendo.editing.objective import InjectionSite, Terms, value_problem
from emendo.editing.value_search import search_values
from emendo.errors import RequestError
from emendo.methods.settings import KeySettings, TargetSettings
from emendo.models.alignment import align_edit, align_prompt
from emendo.models.suffix import packed_attention
from emendo.requests import EditRequest
from tests.conftest import FAMILIES, FLOAT32_ATTENTION, build_tiny
from tests.kinds import kinds
from tests.model_state import changes, model_state
from tests.target_cases import oracle
from tests.target_reference import MODULES

EIFFEL = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
BORDEAUX = EditRequest("I wrote down that {} is", "Bordeaux", "calm")
FRANCE = EditRequest("You may have heard about {}, the capital of", "Paris", "of Italy")
TOWER = EditRequest("The Tower in {} was calm that", "Paris", "the")
REQUESTS = [EIFFEL, BORDEAUX, FRANCE]
CONTEXTS = ("{}", "The weather was calm. {}")
LAYER = 1
SETTINGS = TargetSettings(site="mlp_out", steps=6, learning_rate=0.3, max_norm_ratio=2.0)
PMET = replace(SETTINGS, joint_attention=True, kl_weight=1.0, argmax_nll_weight=0.1, kl_threshold=0.01)
SERIAL_FAMILIES = sorted(set(FAMILIES) & {*MODULES, "gpt2_square"})


# ---- where δ enters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_inside_the_block_and_after_it_are_the_same_where_both_are_possible(family: str, layer: int) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    entry = InjectionSite.at(lm, layer, "mlp_out")
    if entry.inside:
        pytest.skip("the MLP's output is normed: δ can only enter inside")
    found = []
    for way in (entry, replace(entry, inside=True)):
        problem, init = value_problem(lm, [[request] for request in REQUESTS], CONTEXTS, way)
        delta = torch.randn(init.shape, generator=torch.Generator().manual_seed(0), dtype=init.dtype)
        delta.requires_grad_(True)
        with packed_attention(lm):
            losses = problem.losses(lm, delta, init.norm(dim=2), Terms())
            (gradient,) = torch.autograd.grad(losses.total.sum(), delta)
        found.append((losses.total.detach(), gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("family", kinds(SERIAL_FAMILIES))
def test_joint_attention_equals_the_serial_search(family: str) -> None:
    rtol = 1e-5 if family in FLOAT32_ATTENTION else 1e-8
    lm = build_tiny(family, dtype=torch.float64)
    before = model_state(lm)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, PMET)
    assert changes(before, model_state(lm)) == []
    for row, request in enumerate(REQUESTS):
        search = oracle(lm, request, PMET, contexts=CONTEXTS)
        assert found.traces[row].losses == pytest.approx(search.losses, rel=rtol)
        torch.testing.assert_close(found.delta[row], search.delta, rtol=10 * rtol, atol=100 * rtol)
        alone = oracle(lm, request, replace(PMET, joint_attention=False), contexts=CONTEXTS)
        assert search.losses[1:] != pytest.approx(alone.losses[1:], rel=1e-4), "the second δ must matter"


def test_rules_of_pmet_turn_the_search_to_the_divergence() -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    # A subject that ends the prompt, at the last layer, where δ can put any one token on top.
    likely = [EditRequest("The weather in {}", "Tokyo", "the"), EditRequest("I wrote down {}", "Paris", "a")]
    settings = replace(PMET, steps=20, max_norm_ratio=6.0, kl_weight=0.01, loss_threshold=0.0)
    for threshold, stopped in ((1e9, "kl"), (0.0, "steps")):
        settings = replace(settings, kl_threshold=threshold)
        found = search_values(lm, likely, CONTEXTS, 3, settings)
        for row, request in enumerate(likely):
            search = oracle(lm, request, settings, 3, CONTEXTS)
            assert found.traces[row].losses == pytest.approx(search.losses, rel=1e-7)
            assert any(search.argmax), "no search reached the argmax, so the rules were not tried"
            assert found.traces[row].stopped == stopped


@pytest.mark.parametrize("kl_weight", [0.05, 4.0])
def test_the_divergence_that_stops_a_search_is_weighted_as_in_its_loss(kl_weight: float) -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    request = EditRequest("The weather in {}", "Tokyo", "the")
    settings = replace(PMET, steps=20, max_norm_ratio=6.0, kl_weight=kl_weight, loss_threshold=0.0, kl_threshold=0.0)
    endless = oracle(lm, request, settings, 3, CONTEXTS)
    reached = [kl_weight * kl for kl, hit in zip(endless.kls, endless.argmax, strict=True) if hit]
    # Between weighted and unweighted, where one rule stops the search and the other does not.
    threshold = (min(reached) + min(reached) / kl_weight) / 2
    settings = replace(settings, kl_threshold=threshold)
    (trace,) = search_values(lm, [request], CONTEXTS, 3, settings).traces
    search = oracle(lm, request, settings, 3, CONTEXTS)
    assert trace.stopped == ("kl" if kl_weight < 1 else "steps")
    assert trace.losses == pytest.approx(search.losses, rel=1e-7)


def test_the_argmax_weight_counts_from_the_next_step_on() -> None:
    """So a loss that is small only under the weight does not end the search where the argmax is first reached."""
    lm = build_tiny("llama", dtype=torch.float64)
    request = EditRequest("The weather in {}", "Tokyo", "the")
    settings = replace(PMET, steps=20, max_norm_ratio=6.0, kl_weight=0.01, loss_threshold=0.0, kl_threshold=0.0)
    plain = search_values(lm, [request], CONTEXTS, 3, replace(settings, argmax_nll_weight=1.0)).traces[0].losses
    light = search_values(lm, [request], CONTEXTS, 3, settings).traces[0].losses
    first = next(at for at, hit in enumerate(oracle(lm, request, settings, 3, CONTEXTS).argmax) if hit)
    assert light[: first + 1] == plain[: first + 1]
    assert light[first + 1] < plain[first + 1]


# ---- end of text ---------------------------------------------------------------------------------------------


def test_end_of_text_is_the_last_token_of_the_target() -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    eos = lm.tokenizer.eos_token_id
    plain, ended = align_edit(lm, EIFFEL), align_edit(lm, EIFFEL, end_of_text=True)
    assert ended.target_ids == (*plain.target_ids, eos)
    assert ended.ids == (*plain.ids, plain.target_ids[-1])
    settings = replace(SETTINGS, end_of_text=True)
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, settings)
    for row, request in enumerate(REQUESTS):
        search = oracle(lm, request, settings, contexts=CONTEXTS)
        assert found.traces[row].losses == pytest.approx(search.losses, rel=1e-8)


def test_a_tokenizer_without_end_of_text_is_an_error() -> None:
    lm = build_tiny("llama")
    lm.tokenizer.eos_token = None
    with pytest.raises(RequestError, match="end_of_text=false"):
        align_edit(lm, EIFFEL, end_of_text=True)


# ---- shared and anchored -------------------------------------------------------------------------------------


def test_requests_on_one_subject_share_their_target() -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    requests = [FRANCE, EIFFEL, TOWER]
    settings = replace(SETTINGS, site="resid_post", shared="subject")
    found = search_values(lm, requests, CONTEXTS, LAYER, settings)
    assert torch.equal(found.value[0], found.value[2])
    assert torch.equal(found.delta[0], found.delta[2])
    assert not torch.equal(found.value[0], found.value[1])
    own = search_values(lm, requests, CONTEXTS, LAYER, replace(settings, shared="request"))
    torch.testing.assert_close(found.value[1], own.value[1], rtol=1e-8, atol=1e-8)
    assert found.traces[1].losses == pytest.approx(own.traces[1].losses, rel=1e-8)
    # At δ = 0 the loss of the group is the mean of its members'.
    assert found.traces[0].losses[0] == pytest.approx((own.traces[0].losses[0] + own.traces[2].losses[0]) / 2, rel=1e-8)
    init = current_values(lm, [FRANCE, TOWER], CONTEXTS[:1], LAYER, "resid_post", KeySettings())
    torch.testing.assert_close(found.value[0] - found.delta[0], init.mean(dim=0), rtol=1e-8, atol=1e-8)


def test_anchored_targets_keep_their_direction() -> None:
    lm = build_tiny("gpt2")
    found = search_values(lm, REQUESTS, CONTEXTS, LAYER, SETTINGS)
    norms = torch.tensor([1.0, 2.0, 3.0])
    anchored = found.anchored(norms, [[0], [1], [2]])
    torch.testing.assert_close(anchored.value.norm(dim=1), norms)
    torch.testing.assert_close(torch.cosine_similarity(anchored.value, found.value), torch.ones(3))
    torch.testing.assert_close(anchored.value - anchored.delta, found.value - found.delta, rtol=1e-4, atol=1e-4)


def test_requests_that_share_a_target_share_its_anchored_norm() -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    settings = replace(SETTINGS, site="resid_post", shared="subject")
    found = search_values(lm, [FRANCE, EIFFEL, TOWER], CONTEXTS, LAYER, settings)
    norms = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    anchored = found.anchored(norms, [[0, 2], [1]])
    assert torch.equal(anchored.value[0], anchored.value[2])
    torch.testing.assert_close(anchored.value.norm(dim=1), torch.tensor([2.5, 2.0, 2.5], dtype=torch.float64))
    assert norms.tolist() == [1.0, 2.0, 4.0]


# ---- forward replay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_forward_values_are_those_of_a_model_that_holds_the_target(family: str, site: str) -> None:
    """Against one prompt at a time with a hook of its own."""
    lm = build_tiny(family, dtype=torch.float64)
    delta = torch.randn(len(REQUESTS), lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = model_state(lm)
    found = forward_values(lm, REQUESTS, 1, delta, site, [2, 3])  # type: ignore[arg-type]
    assert changes(before, model_state(lm)) == []
    for row, request in enumerate(REQUESTS):
        prompt = align_prompt(lm, request)

        def add(module: object, args: object, out: object, row: int = row, at: int = prompt.subject_last) -> object:
            hidden = (out[0] if isinstance(out, tuple) else out).clone()  # type: ignore[attr-defined]
            hidden.view(-1, lm.d_model)[at] += delta[row]
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        module = lm.blocks[1] if site == "resid_post" else lm.down_projection(1)
        handle = module.register_forward_hook(add)
        capture = lm.run(lm.batch([prompt.ids]), resid=[2, 3], mlp_out=[2, 3])
        handle.remove()
        captured = capture.resid if site == "resid_post" else capture.mlp_out
        for layer in (2, 3):
            torch.testing.assert_close(found[layer][row], captured[layer][0, prompt.subject_last], rtol=1e-5, atol=1e-6)
