"""Prefix trees of texts: their shape, and their hidden states against one ordinary forward pass a text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emendo.models import EditableModel
from emendo.models.tree import build_prefix_tree, group_by_prefix, tree_hidden
from tests.conftest import FLOAT32_ATTENTION, ROWS, VARIANTS, build_tiny
from tests.model_state import changes, model_state

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


@given(SEQUENCES)
def test_a_forest_holds_every_beginning_once(sequences: list[list[int]]) -> None:
    forest = build_prefix_tree(sequences)
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
        assert len(group) == 1 or len(build_prefix_tree([sequences[i] for i in group]).tokens) <= budget
    shuffled = sequences[::-1]
    again = group_by_prefix(shuffled, budget)
    assert [[sequences[i] for i in group] for group in groups] == [[shuffled[i] for i in group] for group in again]


def branching_texts(lm: EditableModel, seed: int = 0) -> list[list[int]]:
    """Texts that share beginnings of several lengths, one that begins another, and one alone."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(2, lm.vocab_size, (40,), generator=generator).tolist()
    return [draw[:9], draw[:9] + draw[20:23], draw[:9] + draw[23:24], draw[:4] + draw[24:28], draw[30:31], draw[31:38]]


def alone(lm: EditableModel, sequence: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.decoder(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", [*sorted({**ROWS, **VARIANTS}), "llava", "qwen2_vl", "qwen3_vl"])
def test_hidden_states_are_those_of_each_text_alone(family: str) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    texts = branching_texts(lm)
    before = model_state(lm)
    forest = build_prefix_tree(texts)
    found = tree_hidden(lm, forest)
    tolerance = 1e-5 if family in FLOAT32_ATTENTION else 1e-9
    for text, path in zip(texts, forest.paths, strict=True):
        torch.testing.assert_close(found[list(path)], alone(lm, text), rtol=tolerance, atol=tolerance)
    assert changes(before, model_state(lm)) == []


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
    lm = build_tiny(family, dtype=torch.float64)
    short = build_sliding(lm, window=5)
    texts = branching_texts(short)
    forest = build_prefix_tree(texts)
    found = tree_hidden(short, forest)
    tolerance = 1e-5 if family in FLOAT32_ATTENTION else 1e-9
    for text, path in zip(texts, forest.paths, strict=True):
        torch.testing.assert_close(found[list(path)], alone(short, text), rtol=tolerance, atol=tolerance)
    wide = tree_hidden(build_tiny(family, dtype=torch.float64), forest)
    assert not torch.allclose(wide, found, atol=1e-3)  # the window matters for these texts


def build_sliding(lm: EditableModel, window: int) -> EditableModel:
    """The same weights under a sliding window shorter than the texts."""
    name = "window_size" if lm.spec.model_type == "gpt_neo" else "sliding_window"
    config = type(lm.config)(**{**lm.config.to_dict(), name: window})
    model = type(lm.model)(config).to(torch.float64).eval()
    model.load_state_dict(lm.model.state_dict())
    return EditableModel(model, lm.tokenizer, name="sliding")
