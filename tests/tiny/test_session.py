"""A session: plans change nothing, whatever fails; updates go in exactly, and come out bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.contexts import prefix_contexts
from emendo.editing.keys import context_weights
from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.errors import BaseMismatchError, InfeasibleError, InputError, NumericalError, RequestError
from emendo.methods import apply_settings
from emendo.models import EditableModel
from emendo.models.alignment import align_prompt
from emendo.requests import EditRequest
from emendo.statistics import MomentStore, obtain_for_method, read_moment
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.pairs import covering, pairs
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK, REQUESTS, quick_plan

ROUNDING = 3e-6  # of a few dozen float32 products, relative
LAYOUTS = ("llama", "gpt2", "gpt2_square", "gptj", "gpt_neox")


def weights_of(lm: EditableModel) -> list[Tensor]:
    return [lm.weight(layer).clone() for layer in range(lm.n_layers)]


def equal_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(
        torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )


# ---- planning changes nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method", "dtype"),
    covering(["llama", "gpt2_square"], ["emmet", "memit", "rome"], [torch.float32, torch.bfloat16]),
)
def test_a_plan_leaves_no_trace(family: str, method: str, dtype: torch.dtype, store: MomentStore) -> None:
    lm = build_tiny(family, dtype=dtype)
    lm.model.train()
    next(lm.model.parameters()).requires_grad_(False)
    before = model_state(lm)
    plan = quick_plan(EditSession(lm, store=store), [EIFFEL], method)
    assert changes(before, model_state(lm)) == []
    assert max(float(part.delta().abs().max()) for part in plan.update.layers) > 0, "the plan does something"


def test_refused_requests_leave_the_session_usable(session: EditSession) -> None:
    before = model_state(session.lm)
    with pytest.raises(RequestError):
        session.plan([EIFFEL, EIFFEL])
    with pytest.raises(RequestError):
        session.plan([])
    assert changes(before, model_state(session.lm)) == []
    quick_plan(session, [EIFFEL])


# ---- what applying does --------------------------------------------------------------------------------------


def naive_rows(lm: EditableModel, request: EditRequest, contexts: tuple[str, ...], layer: int) -> tuple[Any, Any]:
    """Input and output of the edited map at the subject's last token: one full forward pass a context."""
    module, keys, outs = lm.model.get_submodule(lm.module_name(layer)), [], []
    for context in contexts:
        prompt = align_prompt(lm, request, context)
        seen: list[tuple[Tensor, Tensor]] = []
        handle = module.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0], out)))
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([prompt.ids]))
        handle.remove()
        keys.append(seen[0][0][0, prompt.subject_last])
        outs.append(seen[0][1][0, prompt.subject_last])
    return torch.stack(keys), torch.stack(outs)


@pytest.mark.parametrize(("family", "method"), pairs(LAYOUTS, ["emmet", "rome", "r-rome"]))
def test_the_edited_layer_maps_the_key_to_the_value(family: str, method: str, store: MomentStore) -> None:
    """(W₀ + Δ) k = W₀ k + R at the mean key (EMMET, r-ROME) or the plain one (ROME), in the edited model itself."""
    lm = build_tiny(family)
    session = EditSession(lm, store=store)
    plan = quick_plan(session, [EIFFEL], method)
    (part,), config = plan.update.layers, plan.method.config
    keys, before = naive_rows(lm, EIFFEL, plan.contexts, part.layer)
    targets = search_values(lm, [EIFFEL], plan.contexts, part.layer, config.target)
    session.apply(plan.update)
    again, after = naive_rows(lm, EIFFEL, plan.contexts, part.layer)
    torch.testing.assert_close(again, keys, rtol=0, atol=0)  # nothing below the edit moves
    average = context_weights(len(plan.contexts), config.keys.average).to(keys)
    # The map is affine, so its outputs average as its keys do.
    moved = (after - before)[0] if method == "rome" else average @ (after - before)
    tolerance = ROUNDING * float(after.abs().max())
    torch.testing.assert_close(moved, part.residuals[0], rtol=0, atol=tolerance)
    if method == "rome":
        torch.testing.assert_close(after[0], targets.value[0], rtol=0, atol=tolerance)
    elif method == "r-rome":
        torch.testing.assert_close(average @ after, targets.value[0], rtol=0, atol=tolerance)
    else:
        torch.testing.assert_close(moved, targets.delta[0], rtol=0, atol=tolerance)
    assert float(moved.norm()) > 0.1, "the edit moves the output by more than rounding"


@pytest.mark.parametrize("family", LAYOUTS)
def test_equality_holds_for_every_request_of_a_batch(family: str, store: MomentStore) -> None:
    lm = build_tiny(family)
    session = EditSession(lm, store=store)
    plan = quick_plan(session, REQUESTS)
    (part,) = plan.update.layers
    average = context_weights(len(plan.contexts), "two_level").float()
    before = [average @ naive_rows(lm, request, plan.contexts, part.layer)[1] for request in REQUESTS]
    session.apply(plan.update)
    for row, request in enumerate(REQUESTS):
        after = average @ naive_rows(lm, request, plan.contexts, part.layer)[1]
        torch.testing.assert_close(after - before[row], part.residuals[row], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "family"), pairs([torch.float32, torch.bfloat16, torch.float64], ["llama", "gpt2_square"])
)
def test_weights_are_the_sum_cast_once_and_rollback_is_bitwise(
    family: str, dtype: torch.dtype, store: MomentStore
) -> None:
    lm = build_tiny(family, dtype=dtype)
    state, originals = model_state(lm), weights_of(lm)
    session = EditSession(lm, store=store)
    first = quick_plan(session, [EIFFEL], layers=[1]).update
    session.apply(first)
    second = quick_plan(session, [DARRIEUX], layers=[1]).update
    session.apply(second)
    wide = torch.promote_types(dtype, torch.float32)
    deltas = [update.layers[0].delta() for update in (first, second)]
    expected = originals[1].to(wide) + deltas[0] + deltas[1]
    assert torch.equal(lm.weight(1), expected.to(dtype))
    if dtype is torch.bfloat16:
        in_steps = ((originals[1] + deltas[0]).to(dtype) + deltas[1]).to(dtype)
        assert not torch.equal(lm.weight(1), in_steps), "casting twice would show"
    assert session.verify_rolled_back() == {lm.module_name(1): False}
    session.rollback()
    assert changes(state, model_state(lm)) == []
    assert session.verify_rolled_back() == {lm.module_name(1): True}
    assert session.applied_updates == ()
    assert not lm.holds_edits


def test_untouched_entries_of_a_float64_model_keep_all_their_digits(store: MomentStore) -> None:
    lm = build_tiny("llama", dtype=torch.float64)
    session, original = EditSession(lm, store=store), lm.weight(1).clone()
    session.apply(quick_plan(session, [EIFFEL], layers=[1]).update)
    delta = session.applied_updates[0].layers[0].delta().double()
    torch.testing.assert_close(lm.weight(1), original + delta, rtol=0, atol=1e-15)


def test_the_context_takes_the_update_out_again(session: EditSession) -> None:
    state, update = model_state(session.lm), quick_plan(session, [EIFFEL]).update
    with session.applied(update):
        assert session.applied_updates == (update,)
        assert changes(state, model_state(session.lm)) == ["weights"]
    assert changes(state, model_state(session.lm)) == []
    with pytest.raises(KeyboardInterrupt), session.applied(update):
        raise KeyboardInterrupt
    assert changes(state, model_state(session.lm)) == []
    assert session.applied_updates == ()


def test_the_context_on_top_of_an_edit_returns_to_that_edit(session: EditSession) -> None:
    session.apply(quick_plan(session, [EIFFEL]).update)
    state, applied = model_state(session.lm), session.applied_updates
    second = quick_plan(session, [DARRIEUX]).update
    with pytest.raises(KeyboardInterrupt), session.applied(second):
        raise KeyboardInterrupt
    assert changes(state, model_state(session.lm)) == []
    assert session.applied_updates == applied


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused(value: float, session: EditSession) -> None:
    state, (part,) = model_state(session.lm), quick_plan(session, [EIFFEL]).update.layers
    residuals = part.residuals.clone()
    residuals[0, 0] = value
    broken = ModelUpdate((LayerUpdate(part.layer, part.module, residuals, part.dual_keys),), session.base)
    with pytest.raises(NumericalError, match=f"layer {part.layer}"):
        session.apply(broken)
    assert changes(state, model_state(session.lm)) == []
    assert session.applied_updates == ()


def test_an_update_beyond_the_range_of_the_dtype_is_refused() -> None:
    lm = build_tiny("llama", dtype=torch.float16)
    session, state = EditSession(lm), model_state(lm)
    big = LayerUpdate(1, lm.module_name(1), torch.full((1, lm.d_model), 1e3), torch.full((1, 48), 1e3))
    with pytest.raises(NumericalError, match="float32"):
        session.apply(ModelUpdate((big,), session.base))
    assert changes(state, model_state(lm)) == []


def test_a_model_that_is_not_finite_is_not_edited(session: EditSession) -> None:
    session.lm.weight(0)[0, 0] = float("nan")
    state = model_state(session.lm)
    with pytest.raises((NumericalError, InputError)):
        quick_plan(session, [EIFFEL])
    assert changes(state, model_state(session.lm)) == []


# ---- edits on top of edits -----------------------------------------------------------------------------------


def test_a_plan_knows_what_it_stands_on(session: EditSession, store: MomentStore) -> None:
    first = quick_plan(session, [EIFFEL]).update
    session.apply(first)
    second = quick_plan(session, [DARRIEUX]).update
    assert (first.preceding, second.preceding) == (Predecessors(), Predecessors.of([first.id]))
    other = EditSession(build_tiny("llama"), store=store)
    with pytest.raises(BaseMismatchError, match=r"on 1 update \(.* and found is the unedited model"):
        other.apply(second)
    with pytest.raises(BaseMismatchError, match="on the unedited model, and found is 1 update"):
        session.apply(first)
    assert second.id != quick_plan(other, [DARRIEUX]).update.id
    other.apply(first)
    other.apply(second)
    session.apply(second)
    assert equal_bits(weights_of(session.lm), weights_of(other.lm))


def test_as_many_but_other_predecessors_are_named(session: EditSession, store: MomentStore) -> None:
    first = quick_plan(session, [EIFFEL]).update
    session.apply(first)
    second = quick_plan(session, [DARRIEUX]).update
    other = EditSession(build_tiny("llama"), store=store)
    other.apply(quick_plan(other, [JAPAN]).update)
    with pytest.raises(BaseMismatchError, match=first.id[:12]):
        other.apply(second)


def test_the_second_edit_sees_the_first_in_the_model_but_not_in_the_moments(
    session: EditSession, store: MomentStore, tmp_path: Path
) -> None:
    session._metrics.store = MomentStore(tmp_path)
    session.apply(quick_plan(session, [EIFFEL], layers=[1]).update)
    assert list(tmp_path.rglob("layer-02.safetensors")) == []
    later = quick_plan(session, [DARRIEUX], layers=[2])
    fresh = quick_plan(EditSession(build_tiny("llama"), store=store), [DARRIEUX], layers=[2])
    folder = later.update.info["moments"]["fingerprint"][:16]
    totals = [read_moment(root / folder / "layer-02.safetensors").moment.total for root in (tmp_path, store.root)]
    assert torch.equal(totals[0], totals[1]), "moments are those of the unedited model"
    assert not torch.equal(later.update.layers[0].residuals, fresh.update.layers[0].residuals)


def test_second_moments_of_a_changed_file_are_not_taken_for_the_old_ones(session: EditSession, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    settings = {**QUICK, "moments.source": str(text)}
    session._metrics.store = MomentStore(tmp_path / "store")
    text.write_text("The weather was calm that morning. I wrote this down last year.\n" * 60)
    first = session.plan([EIFFEL], settings=settings).update
    text.write_text("Danielle Darrieux, a native speaker of French, was born in Bordeaux.\n" * 60)
    second = session.plan([EIFFEL], settings=settings).update
    fresh = EditSession(build_tiny("llama"), store=session._metrics.store).plan([EIFFEL], settings=settings).update
    assert second.info["moments"]["fingerprint"] != first.info["moments"]["fingerprint"]
    assert second.id == fresh.id


def test_one_moment_and_one_factor_a_layer_are_kept(session: EditSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for: each of them is gigabytes in a large model."""
    collected: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        collected.append(1)
        return obtain_for_method(*args, **kwargs)

    monkeypatch.setattr("emendo.editing.metric_cache.obtain_for_method", counted)
    base = session.resolve("memit", layers=[1, 2], settings=QUICK).config
    first = session.preservation(base)
    other = session.preservation(apply_settings(base, {"preservation.weight": 7}))
    assert collected == [1]
    assert all(other[layer].moment is first[layer].moment for layer in (1, 2))
    assert session.second_moments([1, 2], base.moments)[0][1] is first[1].moment
    again = session.preservation(base)
    torch.testing.assert_close(again[1].cholesky, first[1].cholesky, rtol=0, atol=0)
    session.preservation(apply_settings(base, {"moments.exclude_first": True}))
    assert collected == [1, 1]
    assert session._metrics.layers == [1, 2]


@pytest.mark.parametrize("method", ["emmet", "memit", "emendo"])
def test_a_moment_of_fewer_tokens_than_directions_is_refused(method: str, session: EditSession) -> None:
    """Products in float32 leave rounding where there is nothing, and A then has a factor that means nothing."""
    d_in = session.lm.d_in(1)
    few = {**QUICK, "moments.multiple": (d_in - 1) / d_in}
    with pytest.raises(InfeasibleError, match=rf"{d_in - 1} tokens says nothing about 1 of {d_in} directions"):
        session.plan([EIFFEL], method, layers=[1], settings=few | {"distribution": "single"})
    session.plan([EIFFEL], method, layers=[1], settings=few | {"distribution": "single", "preservation.ridge": 1.0})


def test_reports_are_relative_to_the_unedited_weights(session: EditSession) -> None:
    """So the figures of a sequence can be held against each other."""
    settings = {**QUICK, "target.max_norm_ratio": 6.0}
    first = session.plan([EIFFEL], "emmet", layers=[1], settings=settings)
    moment = session.second_moments([1], first.method.config.moments)[0][1]
    weight = session.lm.weight(1).double()
    power = float(torch.trace(weight @ moment @ weight.T))
    session.apply(first.update)
    second = session.plan([JAPAN], "emmet", layers=[1], settings=settings)
    for plan in (first, second):
        delta = plan.update.layers[0].delta().double()
        assert plan.layers[0].relative_cost == pytest.approx(float(torch.trace(delta @ moment @ delta.T)) / power)
    edited = session.lm.weight(1).double()
    assert float(torch.trace(edited @ moment @ edited.T)) != pytest.approx(power, rel=1e-3)


@pytest.mark.parametrize(("method", "dtype"), pairs(["memit", "rect"], [torch.float32, torch.bfloat16]))
def test_a_fact_that_needs_no_edit_says_nothing_about_what_was_written(
    method: str, dtype: torch.dtype, store: MomentStore
) -> None:
    """Its residual is rounding, or nothing, and so is the share of it that the update gives."""
    lm = build_tiny("llama", dtype=dtype)
    session, settings = EditSession(lm, store=store), {**QUICK, "preservation.weight": 0.1}
    first = [trace.losses[0] for trace in session.plan(REQUESTS, method, layers=[1, 2], settings=settings).targets]
    between = sum(sorted(first)[:2]) / 2
    plan = session.plan(REQUESTS, method, layers=[1, 2], settings={**settings, "target.loss_threshold": between})
    assert [trace.delta_norm for trace in plan.targets].count(0.0) == 1
    for layer in plan.layers:
        assert layer.achieved is not None
        assert 0.0 < layer.achieved < 1.2


def test_dense_updates_do_not_pile_up(session: EditSession) -> None:
    """RECT's update has as many rows as the layer has outputs; the sum of many has no more."""
    for request in REQUESTS:
        session.apply(quick_plan(session, [request], "rect", layers=[1, 2]).update)
    assert {part.rank for part in session._earlier} == {session.lm.d_model}
    for part in session._earlier:
        dense = sum(
            (own.delta() for update in session.applied_updates for own in update.layers if own.layer == part.layer),
            torch.zeros(()),
        )
        torch.testing.assert_close(part.delta(), dense, rtol=1e-5, atol=1e-7)
        assert part.keys is not None
        assert len(part.keys) == len(REQUESTS)


# ---- whose update, whose model -------------------------------------------------------------------------------


def test_an_update_of_another_base_is_refused(session: EditSession, store: MomentStore) -> None:
    other = build_tiny("llama", seed=1)
    foreign = quick_plan(EditSession(other, store=store), [EIFFEL]).update
    state = model_state(session.lm)
    with pytest.raises(BaseMismatchError, match=foreign.base["weights_sha256"][:12]):
        session.apply(foreign)
    assert changes(state, model_state(session.lm)) == []


@pytest.mark.parametrize("module", ["model.layers.2.mlp.down_proj", "elsewhere"])
def test_an_update_for_another_module_is_refused(module: str, session: EditSession) -> None:
    part = LayerUpdate(1, module, torch.ones(1, session.lm.d_model), torch.ones(1, 48))
    with pytest.raises(BaseMismatchError, match=module):
        session.apply(ModelUpdate((part,), session.base))


def test_an_update_of_another_shape_is_refused(session: EditSession) -> None:
    part = LayerUpdate(1, session.lm.module_name(1), torch.ones(1, 3), torch.ones(1, 48))
    with pytest.raises(BaseMismatchError, match="3, 48"):
        session.apply(ModelUpdate((part,), session.base))


def test_one_session_at_a_time_edits_a_model(session: EditSession, store: MomentStore) -> None:
    early = EditSession(session.lm, store=store)
    update = quick_plan(session, [EIFFEL]).update
    session.apply(update)
    edited = model_state(session.lm)
    with pytest.raises(InputError, match="another session"):
        EditSession(session.lm, store=store)
    for attempt in (lambda: early.apply(update), lambda: quick_plan(early, [JAPAN])):
        with pytest.raises(InputError, match="another session"):
            attempt()
    early.rollback()  # has nothing to take back, and must not forget the other's edit
    assert changes(edited, model_state(session.lm)) == []
    assert session.lm.holds_edits
    session.rollback()
    early.apply(update)
    assert early.applied_updates == (update,)


# ---- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2_square"])
def test_a_saved_update_does_the_same_elsewhere(family: str, store: MomentStore, tmp_path: Path) -> None:
    session = EditSession(build_tiny(family), store=store)
    update = quick_plan(session, REQUESTS, "memit").update
    session.apply(update)
    loaded = ModelUpdate.load(update.save(tmp_path / "update.safetensors"))
    assert (loaded.id, loaded.info, loaded.base) == (update.id, update.info, update.base)
    other = EditSession(build_tiny(family), store=store)
    other.apply(loaded)
    assert equal_bits(weights_of(session.lm), weights_of(other.lm))
    assert loaded.info["requests"] == [request.to_dict() for request in REQUESTS]


def test_the_same_seed_plans_the_same_bytes_and_another_seed_others(store: MomentStore) -> None:
    settings = {"target.steps": 3, "moments.multiple": 4}  # sampled contexts

    def planned(seed: int) -> ModelUpdate:
        return EditSession(build_tiny("llama"), seed=seed, store=store).plan([EIFFEL], settings=settings).update

    assert planned(5).id == planned(5).id
    assert planned(5).id != planned(6).id
    assert planned(5).info["seed"] == 5


def test_contexts_are_sampled_once_for_each_state_of_the_model(
    store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"target.steps": 3, "moments.multiple": 4}
    sampled = []

    def counting(*arguments: Any) -> tuple[str, ...]:
        sampled.append(arguments)
        return prefix_contexts(*arguments)

    monkeypatch.setattr("emendo.editing.session.prefix_contexts", counting)
    session = EditSession(build_tiny("llama"), store=store)
    first = session.plan([EIFFEL], settings=settings)
    again = session.plan([EIFFEL], settings=settings)
    assert len(sampled) == 1
    assert again.update.id == first.update.id
    session.apply(first.update)
    session.plan([JAPAN], settings=settings)
    assert len(sampled) == 2, "an edited model writes other texts"
    session.rollback()
    fresh = EditSession(build_tiny("llama"), store=store).plan([JAPAN], settings=settings)
    assert session.plan([JAPAN], settings=settings).update.id == fresh.update.id


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the real cache."""
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
