"""One contract for every family, further shapes of them, and multimodal models around them: what an edit relies on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from emendo.editing.session import EditSession
from emendo.editing.value_search import find_targets
from emendo.models import ModelAdapter, load, wrap
from emendo.models.alignment import align_prompt
from emendo.models.suffix import packed_attention, prefill, replay
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import NOT_LINEAR, ROWS, VARIANTS, WRAPPED, build_tiny
from tests.model_state import changes, model_state

ALL = sorted([*ROWS, *VARIANTS, *WRAPPED])
SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26]]
EIFFEL = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
LAYER, AT = 1, 3


@cache
def exact(family: str) -> ModelAdapter:
    """A float64 model for tests that leave it unchanged."""
    return build_tiny(family, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Equal up to rounding; some families compute norms or scores in float32, whatever their dtype."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# ---- what the model computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_logits_are_the_models_own(family: str) -> None:
    adapter = exact(family)
    batch = adapter.batch(SEQUENCES)
    found = adapter.unembed(adapter.final_hidden(batch))
    for row, ids in enumerate(SEQUENCES):
        with torch.no_grad():
            expected = adapter.model(input_ids=torch.tensor([ids])).logits[0]
        close(found[row, : len(ids)], expected)


@pytest.mark.parametrize("family", sorted(WRAPPED))
def test_replay_inside_a_multimodal_model(family: str) -> None:
    """The families themselves are held to the whole model in `test_suffix`."""
    adapter = exact(family)
    constant = prefill(adapter, adapter.batch(SEQUENCES), [2, 0, 5], LAYER)
    with packed_attention(adapter), torch.no_grad():
        found = replay(adapter, constant.resid, constant.layout, LAYER)
    close(found, constant.final)


@pytest.mark.parametrize("family", ALL)
def test_parallel_says_whether_the_mlp_sees_its_blocks_attention(family: str) -> None:
    adapter = exact(family)
    batch = adapter.batch(SEQUENCES[:1])
    before = adapter.run(batch, keys=[LAYER]).keys[LAYER]
    attention = adapter.blocks[LAYER].get_submodule(adapter.spec.attention)
    # Different from token to token and dimension to dimension, so that no norm takes it back.
    handle = attention.register_forward_hook(lambda module, args, out: (out[0] + out[0].flip(-1), *out[1:]))
    after = adapter.run(batch, keys=[LAYER]).keys[LAYER]
    handle.remove()
    assert torch.equal(before, after) == adapter.spec.parallel


# ---- an edit reaches its target ------------------------------------------------------------------------------


def moved(adapter: ModelAdapter) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write W' = W + rᵀq with q = k/(k·k): change asked and found at k, and the block's output before and after."""
    batch = adapter.batch(SEQUENCES[-1:])
    before = adapter.run(batch, keys=[LAYER], mlp_out=[LAYER], resid=[LAYER])
    key, present = before.keys[LAYER][0, AT], before.mlp_out[LAYER][0, AT]
    wanted = present + torch.randn(present.shape, generator=torch.Generator().manual_seed(0)).to(present)
    delta = torch.outer(wanted - present, key / (key @ key))
    with adapter.edited({LAYER: adapter.weight(LAYER) + delta}):
        after = adapter.run(batch, mlp_out=[LAYER], resid=[LAYER])
        bias = adapter.down_projection(LAYER).bias
        close(adapter.weight(LAYER) @ key + (0 if bias is None else bias.detach()), wanted)
    return (
        wanted - present,
        after.mlp_out[LAYER][0, AT] - present,
        before.resid[LAYER][0, AT],
        after.resid[LAYER][0, AT],
    )


@pytest.mark.parametrize("family", ALL)
def test_an_edit_reaches_its_target(family: str) -> None:
    adapter = exact(family)
    asked, got, before, after = moved(adapter)
    close(got, asked)
    if adapter.spec.mlp_normed:
        change = (after - before).norm()
        assert float((after - before - asked).norm() / change) > 1e-2, "no norm in the way"
    else:
        close(after - before, adapter.mlp_scale * asked)


def test_the_facts_differ_between_families() -> None:
    normed = {family for family in ALL if exact(family).spec.mlp_normed}
    scaled = {family for family in ALL if exact(family).mlp_scale != 1.0}
    assert normed | scaled == set(NOT_LINEAR)
    assert scaled == {"granite", "llava_next"}
    assert exact("granite").mlp_scale == exact("llava_next").mlp_scale == 0.4


# ---- sessions ------------------------------------------------------------------------------------------------


def random_update(adapter: ModelAdapter, rank: int = 2) -> ModelUpdate:
    generator = torch.Generator().manual_seed(0)
    parts = tuple(
        LayerUpdate(
            layer,
            adapter.module_name(layer),
            torch.randn(rank, adapter.d_model, generator=generator),
            torch.randn(rank, adapter.d_in(layer), generator=generator),
        )
        for layer in (0, 2)
    )
    base = {
        "name": adapter.name,
        "weights_sha256": adapter.weights_digest(),
        "tokenizer_sha256": adapter.tokenizer_digest(),
    }
    return ModelUpdate(parts, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ALL)
def test_an_update_is_written_once_saved_and_taken_back_bit_for_bit(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    adapter = build_tiny(family, dtype=dtype)
    before = model_state(adapter)
    path = random_update(adapter).save(tmp_path / "update.safetensors")
    session, update = EditSession(adapter), ModelUpdate.load(path)
    originals = {part.layer: adapter.weight(part.layer).clone() for part in update.layers}
    session.apply(update)
    for part in update.layers:
        assert torch.equal(adapter.weight(part.layer), (originals[part.layer].float() + part.delta()).to(dtype))
    assert changes(before, model_state(adapter)) == ["weights"]
    session.rollback()
    assert changes(before, model_state(adapter)) == []


@pytest.mark.parametrize("family", ALL)
def test_an_edited_model_is_loaded_by_emendo_and_by_transformers(family: str, tmp_path: Path) -> None:
    adapter = build_tiny(family)
    EditSession(adapter).apply(random_update(adapter))
    adapter.model.save_pretrained(tmp_path)
    adapter.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, device="cpu")
    assert (again.spec, again.weight(2).tolist()) == (adapter.spec, adapter.weight(2).tolist())
    auto = AutoModelForImageTextToText if family in WRAPPED else AutoModelForCausalLM
    other = wrap(auto.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path))
    batch = adapter.batch(SEQUENCES)
    expected = adapter.final_hidden(batch)
    for model in (again, other):
        assert torch.equal(model.final_hidden(batch), expected)


PLANNED = sorted({*ROWS, *VARIANTS, "llava", "qwen2_vl"})


@pytest.mark.parametrize("family", PLANNED)
def test_a_planned_edit_gives_the_block_its_target(family: str, store: MomentStore) -> None:
    """One context and equality: what the site holds at the subject is then v* itself."""
    settings: dict[str, Any] = {"contexts.scheme": "none", "moments.multiple": 4, "target.steps": 3}
    adapter = build_tiny(family)
    before = model_state(adapter)
    session = EditSession(adapter, store=store)
    plan = session.plan([EIFFEL], "emmet", layers=[LAYER], settings=settings)
    assert changes(before, model_state(adapter)) == []
    target = find_targets(adapter, [EIFFEL], ("{}",), LAYER, plan.method.config.target).value[0]
    prompt = align_prompt(adapter, EIFFEL)
    with session.applied(plan.update):
        capture = adapter.run(adapter.batch([prompt.ids]), resid=[LAYER], mlp_out=[LAYER])
    site = plan.method.config.target.site
    assert site == ("mlp_out" if adapter.spec.mlp_normed else "resid_post")
    found = (capture.resid if site == "resid_post" else capture.mlp_out)[LAYER][0, prompt.subject_last]
    close(found, target, 1e-4)
    assert changes(before, model_state(adapter)) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "opt", "gpt2"])
def test_a_plan_on_half_precision_is_float32(family: str, dtype: torch.dtype, store: MomentStore) -> None:
    adapter = build_tiny(family, dtype=dtype)
    settings = {"moments.multiple": 4, "target.steps": 3, "target.precision": "float32"}  # of products: the model's own
    plan = EditSession(adapter, store=store).plan([EIFFEL], "emmet", layers=[LAYER], settings=settings)
    (part,) = plan.update.layers
    for factor in (part.residuals, part.dual_keys):
        assert factor.dtype == torch.float32
        assert not torch.equal(factor, factor.to(dtype).float()), "the factors were rounded to the model's dtype"
