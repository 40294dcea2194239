"""Models and texts that are not as `load` gives them: refused in words, or taken for what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, Phi3Config, PreTrainedModel

from emendo.editing.session import EditSession
from emendo.errors import InputError, NumericalError, SelfCheckError, UnsupportedModelError
from emendo.export import write_checkpoint
from emendo.models import EditableModel, wrap
from emendo.models.generation import continue_rows
from emendo.models.sampling import row_uniforms, sample_tokens
from emendo.models.tree import build_prefix_tree, tree_hidden
from tests.conftest import FAMILIES, build_tiny, build_tokenizer, tiny_config
from tests.model_state import changes, model_state
from tests.random_updates import random_update

TEXT = "The capital of"


def refused(model: Any, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as caught:
        wrap(model, build_tokenizer())
    for word in words:
        assert word in str(caught.value)


# ---- adapters ------------------------------------------------------------------------------------------------

ADAPTED = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "llama": "q_proj", "opt": "q_proj"}


def with_lora(family: str, inject: bool) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=[ADAPTED[family]], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    model = build_tiny(family).model
    with torch.random.fork_rng():
        if not inject:
            return peft.get_peft_model(model, config)
        model.add_adapter(config)
    return model


@pytest.mark.parametrize("inject", [False, True], ids=["get_peft_model", "add_adapter"])
@pytest.mark.parametrize("family", sorted(ADAPTED))
def test_models_with_adapters_are_refused_and_merged_ones_are_not(family: str, inject: bool) -> None:
    """transformers saves such a model as its adapters alone: an exported edit would be gone."""
    model = with_lora(family, inject)
    refused(model, UnsupportedModelError, "adapters", ADAPTED[family], "merge_and_unload()")
    if not inject:
        merged = wrap(model.merge_and_unload(), build_tokenizer())
        assert merged.weights_digest() != build_tiny(family).weights_digest()


@pytest.mark.parametrize("inject", [False, True], ids=["get_peft_model", "add_adapter"])
def test_what_is_left_of_adapters_that_were_deleted_is_refused_until_it_is_taken_off(inject: bool) -> None:
    model = with_lora("llama", inject)
    model.delete_adapter("default")
    refused(model, UnsupportedModelError, "q_proj", "adapters that were deleted", "unload()")
    if not inject:
        assert wrap(model.unload(), build_tokenizer()).weights_digest() == build_tiny("llama").weights_digest()


def test_prompts_that_are_learnt_are_refused() -> None:
    """Nothing is wrapped in such a model: it has a configuration of peft's only."""
    model = build_tiny("llama").model
    model.peft_config = {"default": object()}
    refused(model, UnsupportedModelError, "peft_config", "merge_and_unload()")


def test_a_folder_without_a_model_in_it_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_tiny("llama")

    def save(model: object, folder: Path) -> None:
        (folder / "lora.bin").write_text("x")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    with pytest.raises(SelfCheckError, match=r"lora\.bin.*config\.json and model\.safetensors"):
        write_checkpoint(lm, [random_update(lm, {1: 1}, seed=1)], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- compiled models -----------------------------------------------------------------------------------------


def test_a_compiled_model_is_the_model_that_was_compiled() -> None:
    plain = build_tiny("llama")
    compiled = torch.compile(plain.model, backend="eager")
    lm = wrap(compiled, plain.tokenizer)
    assert lm.model is plain.model
    assert lm.weights_digest() == plain.weights_digest()
    update = random_update(plain, {1: 2}, seed=1)
    EditSession(lm).apply(update)  # made for the plain model
    ids = lm.encode(TEXT)
    with torch.no_grad():
        found = compiled(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, lm.unembed(lm.final_hidden(lm.batch([ids]))[0]))


def test_a_model_compiled_in_place_is_edited_like_any_other() -> None:
    plain = build_tiny("llama")
    plain.model.compile(backend="eager")
    assert wrap(plain.model, plain.tokenizer).weights_digest() == build_tiny("llama").weights_digest()


def test_the_digest_does_not_know_what_was_compiled_later() -> None:
    lm = build_tiny("llama")
    lm.model.model.layers[1] = torch.compile(lm.model.model.layers[1], backend="eager")
    assert lm.weights_digest() == build_tiny("llama").weights_digest()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("part", ["model", "model.layers.2", "model.layers.0.mlp"])
def test_compiled_parts_are_refused(part: str, in_place: bool) -> None:
    """A compiled module is run as it was traced: hooks that came later may be missing."""
    model = build_tiny("llama").model
    module = model.get_submodule(part)
    if in_place:
        module.compile(backend="eager")
    else:
        model.set_submodule(part, torch.compile(module, backend="eager"))
    refused(model, UnsupportedModelError, f"{part} is compiled", "model.compile()")


# ---- what a model is made of ---------------------------------------------------------------------------------


def test_copies_on_several_devices_are_refused() -> None:
    refused(nn.DataParallel(build_tiny("llama").model), UnsupportedModelError, "DataParallel", "model.module")


def test_parameters_made_in_inference_mode_are_refused_and_left_as_they_were() -> None:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_config(tiny_config("llama", 400))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert all(flags)
    refused(model, UnsupportedModelError, "inference_mode()", "embed_tokens")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    lm = build_tiny("llama")
    lm.model.train()
    lm.model.lm_head.weight = next(model.parameters())
    training, flags = lm.model.training, [parameter.requires_grad for parameter in lm.model.parameters()]
    with pytest.raises(UnsupportedModelError, match="lm_head"), lm.isolated():
        pytest.fail("parameters that nobody can write to were accepted")
    assert [parameter.requires_grad for parameter in lm.model.parameters()] == flags
    assert lm.model.training == training


def test_a_block_that_does_not_call_its_modules_is_refused() -> None:
    """BLOOM can multiply by slices of its weights, as its training did."""
    config = BloomConfig(
        **{**FAMILIES["bloom"], "vocab_size": len(build_tokenizer()), "slow_but_exact": True, "pretraining_tp": 2}
    )
    refused(AutoModelForCausalLM.from_config(config), SelfCheckError, "h.0.mlp.dense_4h_to_h", "slow_but_exact=False")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_activations_that_are_not_finite_are_told_as_that(dtype: torch.dtype) -> None:
    model = build_tiny("llama", dtype=dtype).model
    for projection in (model.model.layers[1].mlp.up_proj, model.model.layers[1].mlp.gate_proj):
        projection.weight.data *= 3000 if dtype == torch.float16 else float("inf")
    refused(model, NumericalError, "layers.1", f"not finite in {dtype}", "--dtype bfloat16")


# ---- texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [300, -1])
def test_tokens_that_the_embedding_does_not_have(token: int) -> None:
    lm = build_tiny("llama")
    lm.model.resize_token_embeddings(300)
    assert lm.batch([[299, 0]]).input_ids.shape == (1, 2)
    for call in (lambda: lm.batch([[5], [6, token]]), lambda: tree_hidden(lm, build_prefix_tree([[5], [6, token]]))):
        with pytest.raises(InputError, match=rf"token id {token}.*0 to 299.*tokenizer"):
            call()
    with pytest.raises(InputError, match=r"token id 3\d\d"):
        lm.generate("埃菲尔铁塔位于巴黎", 1)


def longrope(original: int) -> EditableModel:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0]}
    rope |= {"original_max_position_embeddings": original, "rope_theta": 10_000.0}
    settings = {**FAMILIES["phi3"], "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 0}
    tokenizer = build_tokenizer()
    config = Phi3Config(
        **settings, vocab_size=len(tokenizer), rope_parameters=rope, original_max_position_embeddings=original
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wrap(AutoModelForCausalLM.from_config(config).double().eval(), tokenizer)


def test_a_longrope_model_takes_texts_that_leave_its_factors_alone() -> None:
    """One longer text in a batch changes the positions of all others, so an edit would depend on its neighbours."""
    lm = longrope(8)
    short, long = list(range(20, 23)), list(range(30, 39))
    with torch.no_grad():
        together, alone = (
            lm.decoder(input_ids=torch.tensor(rows)).last_hidden_state[-1, :3]
            for rows in ([[*long], [*short, *[1] * 6]], [short])
        )
    assert not torch.allclose(together, alone, atol=1e-3), "the factors are the same: the test shows nothing"
    assert lm.max_length == 8
    for call in (lambda: lm.batch([short, long]), lambda: tree_hidden(lm, build_prefix_tree([short, long]))):
        with pytest.raises(InputError, match=r"9 tokens.*longer than 8.*longrope.*at most 8"):
            call()
    batch = lm.batch([long[:8], short])
    torch.testing.assert_close(lm.final_hidden(batch)[1, :3], lm.final_hidden(lm.batch([short]))[0])
    (continuation,) = continue_rows(lm, [short], [500], stop=False)
    assert len(continuation.ids) == 8 - len(short)


def test_logits_that_are_not_finite_choose_no_token() -> None:
    lm = build_tiny("llama")
    before = model_state(lm)
    with lm.edited({1: torch.full_like(lm.weight(1), 1e38)}):
        with pytest.raises(NumericalError, match=r"not finite in torch\.float32.*--dtype float32"):
            lm.generate(TEXT, 3)
        starts, uniform = torch.tensor([[0]]), row_uniforms(0, 0, 3)[None]
        with pytest.raises(NumericalError, match=r"not finite"):
            sample_tokens(lm, starts, uniform)
    assert changes(before, model_state(lm)) == []
