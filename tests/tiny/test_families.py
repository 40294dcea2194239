"""One contract for every family, further shapes of them, and multimodal models around them: what an edit relies on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.models import Capture, EditableModel, load
from emendo.models.alignment import align_prompt
from emendo.models.suffix import packed_attention, prefill, replay
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import NOT_LINEAR, ROWS, TRAINING_TEXT, VARIANTS, WRAPPED, build_tiny
from tests.kinds import kinds
from tests.model_state import changes, model_state
from tests.pairs import pairs

ALL = sorted([*ROWS, *VARIANTS, *WRAPPED])
SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26]]
EIFFEL = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
LAYER, AT = 1, 3


@cache
def exact(family: str) -> EditableModel:
    """A float64 model for tests that leave it unchanged."""
    return build_tiny(family, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Equal up to rounding; some families compute norms or scores in float32, whatever their dtype."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# ---- what the model computes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_logits_are_the_models_own(family: str) -> None:
    lm = exact(family)
    batch = lm.batch(SEQUENCES)
    found = lm.unembed(lm.final_hidden(batch))
    for row, ids in enumerate(SEQUENCES):
        with torch.no_grad():
            expected = lm.model(input_ids=torch.tensor([ids])).logits[0]
        close(found[row, : len(ids)], expected)


@pytest.mark.parametrize("family", sorted(WRAPPED))
def test_replay_inside_a_multimodal_model(family: str) -> None:
    """The families themselves are held to the whole model in `test_suffix`."""
    lm = exact(family)
    constant = prefill(lm, lm.batch(SEQUENCES), [2, 0, 5], LAYER)
    with packed_attention(lm), torch.no_grad():
        found = replay(lm, constant.resid, constant.layout, LAYER)
    close(found, constant.final)


@pytest.mark.parametrize("family", ALL)
def test_parallel_says_whether_the_mlp_sees_its_blocks_attention(family: str) -> None:
    lm = exact(family)
    batch = lm.batch(SEQUENCES[:1])
    before = lm.run(batch, keys=[LAYER]).keys[LAYER]
    attention = lm.blocks[LAYER].get_submodule(lm.spec.attention)
    # Different from token to token and dimension to dimension, so that no norm takes it back.
    handle = attention.register_forward_hook(lambda module, args, out: (out[0] + out[0].flip(-1), *out[1:]))
    after = lm.run(batch, keys=[LAYER]).keys[LAYER]
    handle.remove()
    assert torch.equal(before, after) == lm.spec.parallel


# ---- an edit reaches its target ------------------------------------------------------------------------------


def moved(lm: EditableModel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write W' = W + rᵀq with q = k/(k·k): change asked and found at k, and the block's output before and after."""
    batch = lm.batch(SEQUENCES[-1:])
    before = lm.run(batch, keys=[LAYER], mlp_out=[LAYER], resid=[LAYER])
    key, present = before.keys[LAYER][0, AT], before.mlp_out[LAYER][0, AT]
    wanted = present + torch.randn(present.shape, generator=torch.Generator().manual_seed(0)).to(present)
    delta = torch.outer(wanted - present, key / (key @ key))
    with lm.edited({LAYER: lm.weight(LAYER) + delta}):
        after = lm.run(batch, mlp_out=[LAYER], resid=[LAYER])
        close(lm.weight(LAYER) @ key + bias_at(lm, before), wanted)
    return (
        wanted - present,
        after.mlp_out[LAYER][0, AT] - present,
        before.resid[LAYER][0, AT],
        after.resid[LAYER][0, AT],
    )


def bias_at(lm: EditableModel, capture: Capture) -> Tensor | float:
    """What the biases of the edited map add at the token; of a mixture those of the experts that it takes."""
    module, routed = lm.down_projection(LAYER), capture.routed.get(LAYER)
    if routed is not None:
        return routed[0, AT].bias(module.down_proj_bias.detach()) if module.has_bias else 0.0
    return 0.0 if module.bias is None else module.bias.detach()


@pytest.mark.parametrize("family", ALL)
def test_an_edit_reaches_its_target(family: str) -> None:
    lm = exact(family)
    asked, got, before, after = moved(lm)
    close(got, asked)
    if lm.spec.mlp_normed:
        change = (after - before).norm()
        assert float((after - before - asked).norm() / change) > 1e-2, "no norm in the way"
    else:
        close(after - before, lm.mlp_scale * asked)


def test_the_facts_differ_between_families() -> None:
    normed = {family for family in ALL if exact(family).spec.mlp_normed}
    scaled = {family for family in ALL if exact(family).mlp_scale != 1.0}
    assert normed | scaled == set(NOT_LINEAR)
    assert scaled == {"granite", "granitemoe", "llava_next"}
    assert {exact(family).mlp_scale for family in scaled} == {0.4}


# ---- sessions ------------------------------------------------------------------------------------------------


def random_update(lm: EditableModel, rank: int = 2) -> ModelUpdate:
    generator = torch.Generator().manual_seed(0)
    parts = tuple(
        LayerUpdate(
            layer,
            lm.module_name(layer),
            torch.randn(rank, lm.d_model, generator=generator),
            torch.randn(rank, lm.d_in(layer), generator=generator),
        )
        for layer in (0, 2)
    )
    base = {
        "name": lm.name,
        "weights_sha256": lm.weights_digest(),
        "tokenizer_sha256": lm.tokenizer_digest(),
    }
    return ModelUpdate(parts, base)


@pytest.mark.parametrize(("family", "dtype"), pairs(ALL, (torch.float32, torch.bfloat16, torch.float16)))
def test_an_update_is_written_once_saved_and_taken_back_bit_for_bit(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = build_tiny(family, dtype=dtype)
    before = model_state(lm)
    path = random_update(lm).save(tmp_path / "update.safetensors")
    session, update = EditSession(lm), ModelUpdate.load(path)
    originals = {part.layer: lm.weight(part.layer).clone() for part in update.layers}
    session.apply(update)
    for part in update.layers:
        assert torch.equal(lm.weight(part.layer), (originals[part.layer].float() + part.delta()).to(dtype))
    assert changes(before, model_state(lm)) == ["weights"]
    session.rollback()
    assert changes(before, model_state(lm)) == []


@pytest.mark.parametrize("family", ALL)
def test_an_edited_model_is_loaded_by_emendo(family: str, tmp_path: Path) -> None:
    """By transformers alone: `test_adapter` for a family of each kind, and the slow test below for all."""
    lm = build_tiny(family)
    EditSession(lm).apply(random_update(lm))
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, device="cpu")
    assert (again.spec, again.weight(2).tolist()) == (lm.spec, lm.weight(2).tolist())
    batch = lm.batch(SEQUENCES)
    assert torch.equal(again.final_hidden(batch), lm.final_hidden(batch))


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_an_edited_model_is_loaded_by_transformers(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    EditSession(lm).apply(random_update(lm))
    lm.model.save_pretrained(tmp_path)
    auto = AutoModelForImageTextToText if family in WRAPPED else AutoModelForCausalLM
    other = auto.from_pretrained(tmp_path)
    with torch.no_grad():
        ids = torch.tensor(SEQUENCES[:1])
        assert torch.equal(other(input_ids=ids).logits, lm.model(input_ids=ids).logits)


PLANNED = [*kinds(ROWS), *VARIANTS, "llava", "qwen2_vl"]
"""What a plan is built on is tested above on every family; the plan itself on each kind, and in slow tests on all."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a plan; second moments of a text, since each family's sampling its own would take longest."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(TRAINING_TEXT * 12), encoding="utf-8")
    return {"contexts.scheme": "none", "moments.source": str(path), "moments.multiple": 4, "target.steps": 2}


@pytest.mark.parametrize("family", PLANNED)
def test_a_planned_edit_gives_the_block_its_target(family: str, store: MomentStore, quick: dict[str, Any]) -> None:
    """One context and equality: what the site holds at the subject is then v* itself."""
    lm = build_tiny(family)
    before = model_state(lm)
    session = EditSession(lm, store=store)
    plan = session.plan([EIFFEL], "emmet", layers=[LAYER], settings=quick)
    assert changes(before, model_state(lm)) == []
    target = search_values(lm, [EIFFEL], ("{}",), LAYER, plan.method.config.target).value[0]
    prompt = align_prompt(lm, EIFFEL)
    with session.applied(plan.update):
        capture = lm.run(lm.batch([prompt.ids]), resid=[LAYER], mlp_out=[LAYER])
    site = plan.method.config.target.site
    assert site == ("mlp_out" if lm.spec.mlp_normed else "resid_post")
    found = (capture.resid if site == "resid_post" else capture.mlp_out)[LAYER][0, prompt.subject_last]
    close(found, target, 1e-4)
    assert changes(before, model_state(lm)) == []


@pytest.mark.parametrize(
    ("family", "dtype"), pairs(["llama", "bloom", "falcon", "opt", "gpt2"], [torch.bfloat16, torch.float16])
)
def test_a_plan_on_half_precision_is_float32(
    family: str, dtype: torch.dtype, store: MomentStore, quick: dict[str, Any]
) -> None:
    lm = build_tiny(family, dtype=dtype)
    settings = {**quick, "target.precision": "float32"}  # of products: the model's own
    plan = EditSession(lm, store=store).plan([EIFFEL], "emmet", layers=[LAYER], settings=settings)
    (part,) = plan.update.layers
    for factor in (part.residuals, part.dual_keys):
        assert factor.dtype == torch.float32
        assert not torch.equal(factor, factor.to(dtype).float()), "the factors were rounded to the model's dtype"
