"""Prefix trees of texts: their shape, and their hidden states against one ordinary forward pass a text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emendo.models import ModelAdapter
from emendo.models.tree import group_by_prefix, plant, tree_hidden
from tests.conftest import FLOAT32_ATTENTION, ROWS, VARIANTS, build_tiny
from tests.model_state import changes, model_state

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


@given(SEQUENCES)
def test_a_forest_holds_every_beginning_once(sequences: list[list[int]]) -> None:
    forest = plant(sequences)
    beginnings = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    assert len(forest.tokens) == len(beginnings)
    for sequence, path in zip(sequences, forest.paths, strict=True):
        assert [forest.tokens[node] for node in path] == sequence
        assert [forest.depths[node] for node in path] == list(range(len(sequence)))
    # A node's subtree is what begins with it.
    text = {
        node: tuple(s[: d + 1]) for s, path in zip(sequences, forest.paths, strict=True) for d, node in enumerate(path)
    }
    for node, own in text.items():
        below = {other for other, beginning in text.items() if beginning[: len(own)] == own}
        assert below == set(range(node, forest.ends[node]))


@given(SEQUENCES, st.integers(1, 12))
def test_groups_hold_each_sequence_once_within_the_budget(sequences: list[list[int]], budget: int) -> None:
    groups = group_by_prefix(sequences, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(sequences)))
    for group in groups:
        assert len(group) == 1 or len(plant([sequences[i] for i in group]).tokens) <= budget
    shuffled = sequences[::-1]
    again = group_by_prefix(shuffled, budget)
    assert [[sequences[i] for i in group] for group in groups] == [[shuffled[i] for i in group] for group in again]


def branching_texts(adapter: ModelAdapter, seed: int = 0) -> list[list[int]]:
    """Texts that share beginnings of several lengths, one that begins another, and one alone."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(2, adapter.vocab_size, (40,), generator=generator).tolist()
    return [draw[:9], draw[:9] + draw[20:23], draw[:9] + draw[23:24], draw[:4] + draw[24:28], draw[30:31], draw[31:38]]


def alone(adapter: ModelAdapter, sequence: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return adapter.decoder(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", [*sorted({**ROWS, **VARIANTS}), "llava", "qwen2_vl", "qwen3_vl"])
def test_hidden_states_are_those_of_each_text_alone(family: str) -> None:
    adapter = build_tiny(family, dtype=torch.float64)
    texts = branching_texts(adapter)
    before = model_state(adapter)
    forest = plant(texts)
    found = tree_hidden(adapter, forest)
    tolerance = 1e-5 if family in FLOAT32_ATTENTION else 1e-9
    for text, path in zip(texts, forest.paths, strict=True):
        torch.testing.assert_close(found[list(path)], alone(adapter, text), rtol=tolerance, atol=tolerance)
    assert changes(before, model_state(adapter)) == []


SLIDING = [
    "cohere2",
    "exaone4",
    "gemma2",
    "gemma3_text",
    "gpt_neo",
    "ministral",
    "mistral",
    "olmo3",
    "phi3",
    "starcoder2",
]


@pytest.mark.parametrize("family", SLIDING)
def test_a_sliding_window_hides_the_same_tokens(family: str) -> None:
    adapter = build_tiny(family, dtype=torch.float64)
    short = build_sliding(adapter, window=5)
    texts = branching_texts(short)
    forest = plant(texts)
    found = tree_hidden(short, forest)
    tolerance = 1e-5 if family in FLOAT32_ATTENTION else 1e-9
    for text, path in zip(texts, forest.paths, strict=True):
        torch.testing.assert_close(found[list(path)], alone(short, text), rtol=tolerance, atol=tolerance)
    wide = tree_hidden(build_tiny(family, dtype=torch.float64), forest)
    assert not torch.allclose(wide, found, atol=1e-3)  # the window matters for these texts


def build_sliding(adapter: ModelAdapter, window: int) -> ModelAdapter:
    """The same weights under a sliding window shorter than the texts."""
    name = "window_size" if adapter.spec.model_type == "gpt_neo" else "sliding_window"
    config = type(adapter.config)(**{**adapter.config.to_dict(), name: window})
    model = type(adapter.model)(config).to(torch.float64).eval()
    model.load_state_dict(adapter.model.state_dict())
    return ModelAdapter(model, adapter.tokenizer, name="sliding")
