"""Matching answers, entropy and reference score on texts that can be checked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emendo.errors import InputError
from emendo.evaluate import (
    ReferenceVocabulary,
    contained_match,
    exact_match,
    generation_entropy,
    ngram_entropy,
    reference_score,
    token_entropy,
)
from emendo.evaluate.entropy import entropy_words
from emendo.evaluate.matching import normalised_words
from tests.every import every

TEXTS = st.lists(
    st.sampled_from(["a", "the ", "Paris", "ß", "3", " ", ".", ". ", "\n", "巴", "。", "’"]), max_size=8
).map("".join)


@every(
    ("text", "answer", "exact", "contained"),
    [
        ("Paris", "Paris", True, True),
        (" Paris. It is the capital of France.", "Paris", True, True),
        (" paris\nThe capital", "Paris", True, True),
        (' "Paris." he said', "Paris", True, True),
        (" the United Kingdom.", "United Kingdom", True, True),
        (" United Kingdom", "the United Kingdom", True, True),
        (" St. Louis. It lies", "St. Louis", True, True),
        (" Paris, Texas.", "Paris", False, True),
        (" Paris Hilton", "Paris", False, True),
        (" a city, namely Paris.", "Paris", False, True),
        (" 3.14", "3", False, True),
        (" party", "art", False, False),
        (" Kingdom United", "United Kingdom", False, False),
        ("", "Paris", False, False),
        (" ...", "Paris", False, False),
        ("Paris", "!", False, False),
        ("ＰＡＲＩＳ", "Paris", True, True),  # full-width letters
        ("STRASSE.", "Straße", True, True),
        ("Munchen", "München", False, False),  # accents stay
        ("巴黎。它是", "巴黎", True, True),
        ("位于巴黎的", "巴黎", False, True),
    ],
)
def test_answers_are_found(text: str, answer: str, exact: bool, contained: bool) -> None:
    assert exact_match(text, answer) is exact
    assert contained_match(text, answer) is contained


@given(TEXTS, TEXTS)
def test_exact_implies_contained(text: str, answer: str) -> None:
    assert contained_match(text, answer) or not exact_match(text, answer)


@given(TEXTS)
def test_a_text_with_words_matches_itself(text: str) -> None:
    assert exact_match(text, text) is bool(normalised_words(text))


def test_ngram_entropy_by_hand() -> None:
    words = ["a", "b", "a", "b", "a"]  # ab ba ab ba; aba bab aba
    thirds = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy(words, 2) == pytest.approx(1.0)
    assert ngram_entropy(words, 3) == pytest.approx(thirds)
    assert generation_entropy(["a b a b a"]) == pytest.approx(1 / 3 + 2 * thirds / 3)


def test_generation_entropy_is_a_mean_over_texts() -> None:
    repeated, distinct = "x x x x x", "one two three four five"  # 0 bits; log2 4 and log2 3
    alone = 2 / 3 + 2 * math.log2(3) / 3
    assert generation_entropy([repeated]) == 0
    assert generation_entropy([distinct]) == pytest.approx(alone)
    assert generation_entropy([repeated, distinct]) == pytest.approx(alone / 2)
    assert generation_entropy(["word"]) == 0  # no n-gram at all
    with pytest.raises(InputError, match="mean over texts"):
        generation_entropy([])


def test_the_tokenisation_rule() -> None:
    text = 'The U.S. paid 3,000.50 for a well-known "don\'t"... Yes!'
    assert entropy_words(text) == [
        *("The", "U.S.", "paid", "3,000.50", "for", "a", "well-known", '"', "don't", '"', ".", ".", ".", "Yes", "!"),
    ]


def test_token_entropy_by_hand() -> None:
    thirds = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert token_entropy([1, 2, 1, 2, 1]) == pytest.approx((1 / 2) / 3 + 2 * (thirds / math.log2(3)) / 3)
    assert token_entropy(range(50)) == pytest.approx(1.0)
    assert token_entropy([7] * 50) == 0
    assert token_entropy([7, 8, 9]) == pytest.approx(1 / 3)  # two bigrams, and one trigram, which counts 0
    assert token_entropy([]) == 0


def test_reference_score_by_hand() -> None:
    vocabulary = ReferenceVocabulary.fit(["Red apple", "red car"])
    rare = math.log(3 / 2) + 1
    assert vocabulary.idf == pytest.approx({"apple": rare, "car": rare, "red": 1.0})
    # u = (red 1), v = (red 1, apple rare)
    assert reference_score(["red"], ["red apple"], vocabulary) == pytest.approx(1 / math.hypot(1, rare))
    # Texts are joined: u = (red 2, car rare), v = (red 1, car rare)
    found = reference_score(["red car", "RED"], ["red car"], vocabulary)
    assert found == pytest.approx((2 + rare**2) / (math.hypot(2, rare) * math.hypot(1, rare)))


def test_reference_score_at_its_ends() -> None:
    snippets = ["the piano player", "the organ"]
    assert reference_score(snippets, snippets) == pytest.approx(1.0)
    assert reference_score(["football"], snippets) == 0
    with pytest.raises(InputError, match="0 texts and 2 references"):
        reference_score([], snippets)
    with pytest.raises(InputError, match="without any"):
        ReferenceVocabulary.fit(["!", "a b"])
