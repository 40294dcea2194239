"""Replaying only the suffix above a layer against the whole model, values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    Qwen2Config,
)

from emendo.editing.value_search import search_values
from emendo.errors import InputError
from emendo.methods.settings import TargetSettings
from emendo.models import WRAPPERS, EditableModel, wrap
from emendo.models.suffix import packed_attention, prefill, replay, select_rows
from emendo.requests import EditRequest
from tests.conftest import FAMILIES, FLOAT32_ATTENTION, ROWS, VARIANTS, build_tiny, build_tokenizer, tiny_config
from tests.kinds import kinds
from tests.model_state import changes, model_state
from tests.pairs import pairs

LENGTHS = [5, 1, 9, 7, 9, 3]
STARTS = [2, 0, 8, 0, 5, 2]
"""Suffixes of 3, 1, 1, 7, 4 and 1 tokens; two rows have no past at all."""


def close(found: Tensor, expected: Tensor, family: str, attention: str = "sdpa") -> None:
    """Equal up to float64 rounding, or float32 where transformers computes attention scores in float32."""
    tolerance = 1e-5 if family in FLOAT32_ATTENTION or attention == "eager" else 1e-9
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@cache
def cached_tiny(family: str, attention: str = "sdpa") -> EditableModel:
    lm = build_tiny(family, dtype=torch.float64)
    if family not in FLOAT32_ATTENTION:
        lm.model.set_attn_implementation(attention)
    return lm


def prompts(lm: EditableModel, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, lm.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


def whole_model(
    lm: EditableModel, ids: Sequence[Sequence[int]], starts: Sequence[int], layer: int, delta: Tensor
) -> Tensor:
    """Final hidden states of all suffixes from one unpadded pass a prompt, δ added by a hook at each start."""
    found = []
    for row, (tokens, start) in enumerate(zip(ids, starts, strict=True)):

        def add(module: object, args: object, out: Any, row: int = row, start: int = start) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            shift = torch.zeros_like(hidden)
            shift[0, start] = 1.0
            shifted = hidden + shift * delta[row]
            return (shifted, *out[1:]) if isinstance(out, tuple) else shifted

        handle = lm.blocks[layer].register_forward_hook(add)
        try:
            found.append(lm.decoder(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0, start:])
        finally:
            handle.remove()
    return torch.cat(found)


def replayed(
    lm: EditableModel, ids: Sequence[Sequence[int]], starts: Sequence[int], layer: int, delta: Tensor
) -> Tensor:
    constant = prefill(lm, lm.batch(ids), starts, layer)
    first = torch.nonzero(constant.layout.steps == 0).flatten()
    with packed_attention(lm):
        return replay(lm, constant.resid.index_add(0, first, delta), constant.layout, layer)


def random_delta(lm: EditableModel, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, lm.d_model, dtype=torch.float64, generator=generator).requires_grad_()


WAYS = [("sdpa", 0), ("eager", 3), ("eager", 0), ("sdpa", 3), ("sdpa", 1), ("eager", 1)]


@pytest.mark.parametrize(("family", "way"), pairs(sorted([*ROWS, *VARIANTS]), WAYS))
def test_replay_equals_the_whole_model(family: str, way: tuple[str, int]) -> None:
    attention, layer = way
    lm = cached_tiny(family, attention)
    ids, delta = prompts(lm), random_delta(lm, len(STARTS))
    expected = whole_model(lm, ids, STARTS, layer, delta)
    untouched = whole_model(lm, ids, STARTS, layer, torch.zeros_like(delta))
    assert float((expected - untouched).detach().norm()) > 0.1, "δ changes nothing: the test shows nothing"
    close(replayed(lm, ids, STARTS, layer, delta), expected, family, attention)
    close(replayed(lm, ids, STARTS, layer, torch.zeros_like(delta)), untouched, family, attention)


@pytest.mark.parametrize("family", sorted([*ROWS, *VARIANTS]))
def test_gradient_equals_the_whole_models(family: str) -> None:
    lm = cached_tiny(family)
    ids, delta = prompts(lm), random_delta(lm, len(STARTS))
    out = whole_model(lm, ids, STARTS, 1, delta)
    direction = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad((out * direction).sum(), delta)
    (found,) = torch.autograd.grad((replayed(lm, ids, STARTS, 1, delta) * direction).sum(), delta)
    assert bool((expected.norm(dim=1) > 1e-3).all())
    close(found, expected, family)


@pytest.mark.parametrize("family", kinds(FAMILIES))
def test_prefill_holds_what_the_model_computes(family: str) -> None:
    lm = cached_tiny(family)
    ids = prompts(lm)
    constant = prefill(lm, lm.batch(ids), STARTS, 2)
    layout = constant.layout
    assert (layout.n_rows, layout.width, len(layout.rows)) == (6, 7, 3 + 1 + 1 + 7 + 4 + 1)
    assert layout.past_mask.sum(dim=1).tolist() == STARTS
    assert sorted(layout.past) == [2, 3]
    for token, (row, step, position) in enumerate(
        zip(layout.rows.tolist(), layout.steps.tolist(), layout.positions.tolist(), strict=True)
    ):
        assert position == STARTS[row] + step
        alone = lm.run(lm.batch([ids[row]]), resid=[2], mlp_out=[2])
        close(constant.resid[token], alone.resid[2][0, position], family)
        close(constant.mlp_out[token], alone.mlp_out[2][0, position], family)
        final = lm.final_hidden(lm.batch([ids[row]]))[0, position]
        close(constant.final[token], final, family)


@pytest.mark.parametrize("family", kinds(FAMILIES))
@pytest.mark.parametrize("chunk_tokens", [1, 20])
def test_chunks_change_nothing(family: str, chunk_tokens: int) -> None:
    lm = cached_tiny(family)
    tolerance = 1e-5 if family in FLOAT32_ATTENTION else 1e-10
    batch = lm.batch(prompts(lm))
    whole = prefill(lm, batch, STARTS, 1)
    calls = []
    handle = lm.blocks[0].register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    parts = prefill(lm, batch, STARTS, 1, chunk_tokens=chunk_tokens)
    handle.remove()
    assert sum(calls) == 6
    assert calls == [1] * 6 if chunk_tokens == 1 else len(calls) > 1
    for name in ("resid", "entering", "mlp_out", "attention_out", "final"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=tolerance, atol=tolerance)
    for name in ("rows", "steps", "positions", "past_mask"):
        assert torch.equal(getattr(parts.layout, name), getattr(whole.layout, name))
    seen = whole.layout.past_mask[:, None, :, None]  # what is masked may hold anything finite
    for layer, stored in whole.layout.past.items():
        for found, expected in zip(parts.layout.past[layer], stored, strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found * seen, expected * seen, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "bloom", "falcon_alibi"])
@pytest.mark.parametrize("keep", [[0, 1, 2, 3, 4, 5], [0, 2, 5], [1], [3, 4]])
def test_selected_rows_replay_as_before(family: str, keep: list[int]) -> None:
    lm = cached_tiny(family)
    constant = prefill(lm, lm.batch(prompts(lm)), STARTS, 1)
    layout, tokens = select_rows(constant.layout, keep)
    assert tokens.tolist() == [i for i, row in enumerate(constant.layout.rows.tolist()) if row in keep]
    assert layout.n_rows == len(keep)
    assert layout.width == max(LENGTHS[row] - STARTS[row] for row in keep)
    assert layout.rows.unique().tolist() == list(range(len(keep)))
    with packed_attention(lm), torch.no_grad():
        found = replay(lm, constant.resid[tokens], layout, 1)
    close(found, constant.final[tokens], family)


def test_rows_do_not_see_each_other() -> None:
    lm = cached_tiny("llama")
    constant = prefill(lm, lm.batch(prompts(lm)), STARTS, 1)
    shift = torch.zeros_like(constant.resid)
    shift[constant.layout.rows == 3] = 1.0
    with packed_attention(lm), torch.no_grad():
        found = replay(lm, constant.resid + shift, constant.layout, 1)
    moved = (found - constant.final).abs().amax(dim=1) > 1e-9
    assert torch.equal(moved, constant.layout.rows == 3)


def test_model_is_as_before_inside_an_error(tiny: EditableModel) -> None:
    tiny.model.train()
    tiny.model.requires_grad_(True)
    before = model_state(tiny)
    constant = prefill(tiny, tiny.batch(prompts(tiny)), STARTS, 1)
    assert changes(before, model_state(tiny)) == []
    with tiny.isolated() as own:
        inside = model_state(own)
        with packed_attention(own):
            torch.testing.assert_close(replay(own, constant.resid, constant.layout, 1), constant.final)
            assert changes(inside, model_state(own)) != [], "the context did nothing"
            assert changes(before, model_state(tiny)) == []
        with pytest.raises(ZeroDivisionError), packed_attention(own):
            raise ZeroDivisionError
        assert changes(inside, model_state(own)) == []
    assert changes(before, model_state(tiny)) == []


# ---- variants within a family --------------------------------------------------------------------------------


def wrapped(config: object) -> EditableModel:
    tokenizer = build_tokenizer()
    config.get_text_config().vocab_size = len(tokenizer)  # type: ignore[attr-defined]
    auto = AutoModelForImageTextToText if config.model_type in WRAPPERS else AutoModelForCausalLM  # type: ignore[attr-defined]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config).double()
    return wrap(model.eval(), tokenizer)


GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
        GPT2Config(**GPT2, scale_attn_weights=False),
        GPTNeoXConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            use_parallel_residual=False,
            initializer_range=0.2,
        ),
    ],
    ids=["gpt2-inverse-layer", "gpt2-unscaled", "neox-sequential"],
)
def test_variants(config: object) -> None:
    lm = wrapped(config)
    ids, delta = prompts(lm), random_delta(lm, len(STARTS))
    expected = whole_model(lm, ids, STARTS, 1, delta)
    torch.testing.assert_close(replayed(lm, ids, STARTS, 1, delta), expected, rtol=1e-9, atol=1e-9)


def mistral(window: int | None) -> EditableModel:
    return wrapped(
        MistralConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            sliding_window=window,
            initializer_range=0.2,
        )
    )


def test_prompts_within_the_sliding_window() -> None:
    """Up to the window itself: there a sliding layer's own cache would already drop the first position."""
    lm = mistral(8)
    ids = [list(range(20, 28)), list(range(40, 47))]
    delta = random_delta(lm, 2)
    expected = whole_model(lm, ids, [3, 1], 1, delta)
    torch.testing.assert_close(replayed(lm, ids, [3, 1], 1, delta), expected, rtol=1e-9, atol=1e-9)


def test_prompts_beyond_the_sliding_window_are_refused() -> None:
    lm = mistral(8)
    with pytest.raises(InputError) as caught:
        prefill(lm, lm.batch([list(range(20, 29))]), [3], 1)
    assert all(word in str(caught.value) for word in ("9 tokens", "sliding", "window of 8", "shorten"))
    request = EditRequest("The capital of {} is located in the city of", "Japan", "Rome")
    before = model_state(lm)
    with pytest.raises(InputError, match="sliding"):
        search_values(lm, [request], ("{}",), 1, TargetSettings())
    assert changes(before, model_state(lm)) == []
    prefill(mistral(None), lm.batch([list(range(20, 29))]), [3], 1)


def test_a_window_that_no_layer_has_refuses_nothing() -> None:
    """Qwen2's configurations name a window, and layers of which none slides."""
    settings = {**FAMILIES["qwen2"], "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 4}
    lm = wrapped(Qwen2Config(**settings))
    assert (lm.config.sliding_window, set(lm.config.layer_types)) == (5, {"full_attention"})
    ids = [list(range(20, 29))]
    delta = random_delta(lm, 1)
    expected = whole_model(lm, ids, [3], 1, delta)
    torch.testing.assert_close(replayed(lm, ids, [3], 1, delta), expected, rtol=1e-9, atol=1e-9)


SLIDING = ["cohere2", "exaone4", "gemma2", "gemma3", "gemma3_text", "gpt_neo", "ministral", "mistral3", "olmo3"]
SLIDING += ["phi3", "starcoder2"]


@pytest.mark.parametrize("family", SLIDING)
def test_every_sliding_family_is_exact_within_its_window_and_refused_beyond(family: str) -> None:
    config = tiny_config(family, len(build_tokenizer()))
    text_config = config.get_text_config(decoder=True)
    setattr(text_config, "window_size" if family == "gpt_neo" else "sliding_window", 8)
    lm = wrapped(config)
    within, beyond = [list(range(20, 28)), list(range(40, 47))], [list(range(20, 29))]
    delta = random_delta(lm, 2)
    expected = whole_model(lm, within, [3, 1], 1, delta)
    torch.testing.assert_close(replayed(lm, within, [3, 1], 1, delta), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="window of 8"):
        prefill(lm, lm.batch(beyond), [3], 1)
