"""One contract for every family: what the adapter says about a model, and how it leaves it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from emendo.errors import InputError, LayerError, SelfCheckError
from emendo.models import EditableModel, wrap
from tests.conftest import FAMILIES, FLOAT32_ATTENTION, ROWS, build_tiny, build_tokenizer
from tests.kinds import ALIKE, kinds
from tests.model_state import changes, model_state
from tests.pairs import pairs

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26]]


def down(lm: EditableModel, layer: int) -> nn.Module:
    return lm.model.get_submodule(lm.module_name(layer))


def unsettle(lm: EditableModel) -> None:
    """A state that no default would restore by luck."""
    lm.model.train()
    lm.blocks[1].eval()
    lm.model.requires_grad_(True)
    next(lm.blocks[2].parameters()).requires_grad_(False)
    lm.tokenizer.padding_side = "left"
    lm.blocks[0].register_forward_hook(lambda module, args, out: None)


# ---- facts ---------------------------------------------------------------------------------------------------


def test_facts(tiny: EditableModel) -> None:
    width = {"tiny-gpt2_square": 32, "tiny-bloom": 4 * 32}.get(tiny.name, 48)  # BLOOM's is four times d_model always
    assert (tiny.n_layers, tiny.d_model, tiny.d_in(2)) == (4, 32, width)
    assert (tiny.vocab_size, tiny.max_length) == (len(tiny.tokenizer), 128)
    assert (tiny.device.type, tiny.dtype) == ("cpu", torch.float32)
    assert isinstance(dict(tiny.model.named_modules())[tiny.module_name(3)], nn.Module)
    assert ".3." in tiny.module_name(3)


def test_weight_is_output_by_input_whatever_the_layout(tiny: EditableModel) -> None:
    """The rows of the view are what the module does to a one-hot key."""
    for layer in range(tiny.n_layers):
        module, weight = down(tiny, layer), tiny.weight(layer)
        assert weight.shape == (tiny.d_model, tiny.d_in(layer))
        with torch.no_grad():
            columns = module(torch.eye(tiny.d_in(layer))) - module(torch.zeros(1, tiny.d_in(layer)))
        torch.testing.assert_close(columns.T, weight, rtol=1e-5, atol=1e-5)
        assert weight.data_ptr() == module.weight.data_ptr(), "a view, not a copy"
        assert not torch.allclose(weight[:, : len(weight)], weight[:, : len(weight)].T), "symmetric: shows nothing"


@pytest.mark.parametrize("layers", [[4], [-1], [0, 99], [], [1, 1]])
def test_layers_that_do_not_exist(tiny_llama: EditableModel, layers: list[int]) -> None:
    with pytest.raises(LayerError, match=r"0 to 3.*--layers"):
        tiny_llama.check_layers(layers)


@pytest.mark.parametrize("call", ["weight", "d_in", "module_name"])
def test_single_layers_that_do_not_exist(tiny_llama: EditableModel, call: str) -> None:
    for layer in (4, -1):
        with pytest.raises(LayerError, match=str(layer)):
            getattr(tiny_llama, call)(layer)
    with pytest.raises(LayerError):
        tiny_llama.run(tiny_llama.batch(SEQUENCES), keys=[4])
    with pytest.raises(LayerError), tiny_llama.isolated([4]):
        pass


# ---- self-check ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", kinds(ROWS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_self_check_passes_in_every_dtype(family: str, dtype: torch.dtype) -> None:
    assert build_tiny(family, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("layer", [0, 3])
def test_self_check_finds_a_module_that_does_something_else(tiny: EditableModel, layer: int) -> None:
    down(tiny, layer).register_forward_hook(lambda module, args, out: out * 1.01)
    with pytest.raises(SelfCheckError) as caught:
        wrap(tiny.model, tiny.tokenizer)
    assert tiny.module_name(layer) in str(caught.value)


def test_wrapping_leaves_the_model_as_it_was(tiny: EditableModel) -> None:
    unsettle(tiny)
    before = model_state(tiny)
    wrap(tiny.model, tiny.tokenizer)
    assert changes(before, model_state(tiny)) == []


# ---- writing -------------------------------------------------------------------------------------------------


def noise(lm: EditableModel, layer: int) -> Tensor:
    generator = torch.Generator().manual_seed(layer)
    return torch.randn(lm.weight(layer).shape, generator=generator)


@pytest.mark.parametrize(
    ("family", "dtype"), pairs(sorted(FAMILIES), (torch.float32, torch.bfloat16, torch.float16), ALIKE)
)
def test_edits_are_written_and_taken_back_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    lm = build_tiny(family, dtype=dtype)
    unsettle(lm)
    before = model_state(lm)
    with lm.edited({1: noise(lm, 1), 3: noise(lm, 3)}):
        assert torch.equal(lm.weight(1), noise(lm, 1).to(dtype))
        assert torch.equal(lm.weight(3), noise(lm, 3).to(dtype))
        assert changes(before, model_state(lm)) == ["weights"]
    assert changes(before, model_state(lm)) == []
    with pytest.raises(ZeroDivisionError), lm.edited({1: noise(lm, 1)}):
        raise ZeroDivisionError
    with lm.isolated([0, 2]) as own:
        own.write(0, noise(lm, 0))
        own.write(2, noise(lm, 2))
        assert torch.equal(own.weight(2), noise(lm, 2).to(dtype))
        assert changes(before, model_state(lm)) == []
    assert changes(before, model_state(lm)) == []


def test_edits_change_what_the_model_computes(tiny: EditableModel) -> None:
    batch = tiny.batch(SEQUENCES[:1])
    before = tiny.final_hidden(batch)
    delta = torch.zeros(tiny.d_model, tiny.d_in(1))
    key = tiny.run(batch, keys=[1]).keys[1][0]
    delta[3, key.abs().sum(dim=0).argmax()] = 2.0  # OPT's keys are zero in many places
    out = tiny.run(batch, mlp_out=[1]).mlp_out[1][0]
    with tiny.edited({1: tiny.weight(1) + delta}):
        moved = tiny.run(batch, mlp_out=[1]).mlp_out[1][0] - out
        assert not torch.allclose(tiny.final_hidden(batch), before, atol=1e-4)
    torch.testing.assert_close(moved, key @ delta.T, rtol=1e-4, atol=1e-4)


def test_a_failing_write_takes_earlier_ones_back(tiny: EditableModel) -> None:
    before = model_state(tiny)
    with pytest.raises(InputError, match="shape"), tiny.edited({1: noise(tiny, 1), 2: torch.zeros(3, 3)}):
        pytest.fail("a weight of another shape was accepted")
    assert changes(before, model_state(tiny)) == []


@pytest.mark.parametrize("shape", [(48,), (1, 48), (32, 1), (48, 32), ()])
def test_no_weight_is_repeated_to_fit(tiny_llama: EditableModel, shape: tuple[int, ...]) -> None:
    before = model_state(tiny_llama)
    with pytest.raises(InputError, match=r"\(32, 48\)|\[d_out, d_in\]"):
        tiny_llama.write(0, torch.zeros(shape))
    assert changes(before, model_state(tiny_llama)) == []


# ---- running -------------------------------------------------------------------------------------------------


def test_run_captures_what_hooks_see(tiny: EditableModel) -> None:
    found: dict[str, Tensor] = {}
    handles = [
        down(tiny, 1).register_forward_pre_hook(lambda m, args: found.__setitem__("key", args[0])),
        # A copy, since Falcon goes on to add to this tensor.
        down(tiny, 2).register_forward_hook(lambda m, args, out: found.__setitem__("mlp", out.clone())),
        tiny.blocks[0].register_forward_hook(
            lambda m, args, out: found.__setitem__("resid", out[0] if isinstance(out, tuple) else out)
        ),
    ]
    capture = tiny.run(tiny.batch(SEQUENCES), keys=[1], mlp_out=[2], resid=[0])
    for handle in handles:
        handle.remove()
    assert (set(capture.keys), set(capture.mlp_out), set(capture.resid)) == ({1}, {2}, {0})
    rows = (len(SEQUENCES), max(map(len, SEQUENCES)))  # OPT's MLP sees them as one
    assert torch.equal(capture.keys[1], found["key"].view(*rows, -1))
    assert torch.equal(capture.mlp_out[2], found["mlp"].view(*rows, -1))
    assert torch.equal(capture.resid[0], found["resid"])
    assert not any(value.requires_grad for value in (capture.keys[1], capture.mlp_out[2], capture.resid[0]))


@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_padding_changes_nothing(family: str) -> None:
    tiny = build_tiny(family, dtype=torch.float64)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5 if family in FLOAT32_ATTENTION else 1e-9)
    together = tiny.run(tiny.batch(SEQUENCES), keys=[3], resid=[3])
    final = tiny.final_hidden(tiny.batch(SEQUENCES))
    for row, ids in enumerate(SEQUENCES):
        alone = tiny.run(tiny.batch([ids]), keys=[3], resid=[3])
        close(together.keys[3][row, : len(ids)], alone.keys[3][0])
        close(together.resid[3][row, : len(ids)], alone.resid[3][0])
        close(final[row, : len(ids)], tiny.final_hidden(tiny.batch([ids]))[0])


@pytest.mark.parametrize("what", ["keys", "mlp_out", "resid"])
def test_run_stops_above_the_highest_layer(tiny: EditableModel, what: str) -> None:
    calls: list[int] = []
    for layer in range(tiny.n_layers):
        tiny.blocks[layer].register_forward_pre_hook(lambda m, args, layer=layer: calls.append(layer))
    tiny.run(tiny.batch(SEQUENCES), **{what: [1, 0]})
    assert calls == [0, 1]


def test_final_hidden_and_unembed_are_the_models_logits(tiny: EditableModel) -> None:
    with torch.no_grad():
        expected = tiny.model(input_ids=torch.tensor([SEQUENCES[0]])).logits
    found = tiny.unembed(tiny.final_hidden(tiny.batch(SEQUENCES[:1])))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_a_configuration_that_asks_for_tuples_and_hidden_states(family: str) -> None:
    lm = build_tiny(family)
    batch = lm.batch(SEQUENCES)
    expected, text = lm.final_hidden(batch), lm.generate("The capital of", 4)
    key = lm.run(batch, keys=[1]).keys[1]
    lm.model.config.return_dict = False
    lm.model.config.output_hidden_states = True
    assert torch.equal(lm.final_hidden(batch), expected)
    assert torch.equal(lm.run(batch, keys=[1]).keys[1], key)
    assert lm.generate("The capital of", 4) == text


METHODS: dict[str, Callable[[EditableModel], object]] = {
    "run": lambda a: a.run(a.batch(SEQUENCES), keys=[0], mlp_out=[1], resid=[2]),
    "final_hidden": lambda a: a.final_hidden(a.batch(SEQUENCES)),
    "generate": lambda a: a.generate("The capital of", 3),
    "encode": lambda a: (a.encode("The capital"), a.encode_bare("of"), a.decode([5, 6]), a.batch(SEQUENCES)),
    "digests": lambda a: (a.weights_digest(), a.tokenizer_digest()),
    "facts": lambda a: (a.weight(1), a.d_in(1), a.n_layers, a.max_length, a.vocab_size),
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_leaves_the_model_as_it_was(tiny: EditableModel, method: str) -> None:
    unsettle(tiny)
    before = model_state(tiny)
    METHODS[method](tiny)
    assert changes(before, model_state(tiny)) == []


@pytest.mark.parametrize("method", ["run", "final_hidden", "generate"])
def test_also_after_an_error_inside_the_model(tiny: EditableModel, method: str) -> None:
    def fail(module: nn.Module, args: object) -> None:
        raise ZeroDivisionError

    down(tiny, 2).register_forward_pre_hook(fail)
    unsettle(tiny)
    before = model_state(tiny)
    with pytest.raises(ZeroDivisionError):
        METHODS[method](tiny)
    assert changes(before, model_state(tiny)) == []


def test_state_comparison_can_fail(tiny_llama: EditableModel) -> None:
    before = model_state(tiny_llama)
    tiny_llama.model.train()
    next(tiny_llama.model.parameters()).data[0, 0] += 1e-6
    torch.rand(1)
    assert changes(before, model_state(tiny_llama)) == ["weights", "training", "torch_rng"]


# ---- text ----------------------------------------------------------------------------------------------------


def test_encode_has_the_models_bos_and_never_an_eos() -> None:
    plain, bos = build_tiny(), build_tiny(bos=True)
    assert bos.encode("The capital") == [0, *plain.encode("The capital")]
    assert plain.encode("The capital") == plain.encode_bare("The capital") == bos.encode_bare("The capital")
    both = build_tokenizer()
    both.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    lm = wrap(plain.model, both)
    assert both("The capital")["input_ids"][-1] == 1
    assert lm.encode("The capital") == bos.encode("The capital")
    assert lm.encode("The capital</s>") == [*bos.encode("The capital"), 1], "an EOS that the text holds stays"
    assert plain.decode(bos.encode("The capital")) == "The capital"


def test_texts_that_cannot_be_used() -> None:
    lm = build_tiny()
    with pytest.raises(InputError, match="no tokens"):
        lm.encode("")
    with pytest.raises(InputError, match=r"129 tokens.*128"):
        lm.batch([[5] * 129])
    assert lm.batch([[5] * 128]).input_ids.shape == (1, 128)


def test_generation_is_greedy_whatever_the_generation_config_says(tiny: EditableModel) -> None:
    ids = tiny.encode("The capital of")
    for _ in range(8):
        with torch.no_grad():
            following = int(tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if following == tiny.tokenizer.eos_token_id:
            break
        ids.append(following)
    expected = tiny.decode(ids[len(tiny.encode("The capital of")) :])
    assert tiny.generate("The capital of", 8) == expected
    config = tiny.model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 0.7, 0.8, 20
    config.repetition_penalty, config.num_beams, config.min_new_tokens, config.max_length = 5.0, 3, 2, 4
    assert tiny.generate("The capital of", 8) == expected


@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_generating_together_is_generating_alone(family: str) -> None:
    """Prompts of different lengths, of which some end early."""
    lm = build_tiny(family)
    prompts = ["The capital of", "I", "Therefore we opened the book", "Paris, the capital of France, is located in"]
    alone = [lm.generate(prompt, 6) for prompt in prompts]
    assert lm.generate_many(prompts, 6) == alone
    prompt = lm.encode(prompts[2])
    first = int(lm.unembed(lm.final_hidden(lm.batch([prompt]))[0, -1]).argmax())
    lm.model.generation_config.eos_token_id = first
    assert lm.generate(prompts[2], 6) == ""
    assert lm.generate_many(prompts, 6) == [lm.generate(prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("as_list", [False, True])
def test_generation_ends_at_an_end_token_and_at_the_last_position(tiny_llama: EditableModel, as_list: bool) -> None:
    full = tiny_llama.generate("The capital of", 500)
    prompt = tiny_llama.encode("The capital of")
    assert full
    first = int(tiny_llama.unembed(tiny_llama.final_hidden(tiny_llama.batch([prompt]))[0, -1]).argmax())
    tiny_llama.model.generation_config.eos_token_id = [399, first] if as_list else first
    assert tiny_llama.generate("The capital of", 500) == ""


# ---- identity ------------------------------------------------------------------------------------------------


def test_digest_changes_with_any_weight(tiny: EditableModel) -> None:
    digest = wrap(tiny.model, tiny.tokenizer).weights_digest()
    assert wrap(tiny.model, tiny.tokenizer).weights_digest() == digest
    seen = {digest}
    for _, parameter in tiny.model.named_parameters():
        flat = parameter.data.view(-1)
        original = flat[-1].clone()
        flat[-1] = torch.nextafter(original, torch.tensor(torch.inf))
        tiny.accept_weights()
        seen.add(tiny.weights_digest())
        flat[-1] = original
    assert len(seen) == 1 + len(list(tiny.model.parameters()))
    assert wrap(tiny.model, tiny.tokenizer).weights_digest() == digest


def test_digest_is_of_the_base_and_knows_the_dtype(tiny_llama: EditableModel) -> None:
    digest = tiny_llama.weights_digest()
    with tiny_llama.edited({0: noise(tiny_llama, 0)}):
        assert tiny_llama.weights_digest() == digest
    assert build_tiny("llama", dtype=torch.bfloat16).weights_digest() != digest
    assert build_tiny("llama").weights_digest() == digest
    assert tiny_llama.tokenizer_digest() != build_tiny("llama", bos=True).tokenizer_digest()


def test_tied_embeddings(tmp_path: Path) -> None:
    """GPT-2 ties its unembedding to its embedding: an edit touches neither, and a copy has the same identity."""
    lm = build_tiny("gpt2")
    assert lm.model.lm_head.weight.data_ptr() == lm.model.transformer.wte.weight.data_ptr()
    embedding = lm.model.lm_head.weight.detach().clone()
    lm.write(3, noise(lm, 3))
    assert torch.equal(lm.model.lm_head.weight, embedding)
    lm.model.save_pretrained(tmp_path)
    again = wrap(AutoModelForCausalLM.from_pretrained(tmp_path), lm.tokenizer)
    assert again.model.lm_head.weight.data_ptr() == again.model.transformer.wte.weight.data_ptr()
    assert again.weights_digest() == lm.weights_digest()


@pytest.mark.parametrize(("family", "dtype"), pairs(sorted(FAMILIES), (torch.float32, torch.bfloat16), ALIKE))
def test_an_edited_model_is_saved_and_loaded_by_transformers_alone(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = build_tiny(family, dtype=dtype)
    lm.write(2, noise(lm, 2))
    expected = lm.final_hidden(lm.batch(SEQUENCES))
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    again = wrap(model, PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert torch.equal(again.weight(2), noise(lm, 2).to(dtype))
    assert again.weights_digest() == lm.weights_digest()
    assert again.tokenizer_digest() == lm.tokenizer_digest()
    if dtype == torch.float32:  # `.to(bfloat16)` in `build_tiny` rounds rotary frequencies, which loading does not
        assert torch.equal(again.final_hidden(again.batch(SEQUENCES)), expected)
