"""Strict JSON: any parser reads it."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emendo.errors import InputError
from emendo.io import strict_json
from emendo.io.printable import well_formed


def test_numbers_that_are_not_finite_become_null() -> None:
    value = {"a": math.inf, "b": [1.5, math.nan, (-math.inf, 2)], "c": {"d": "é"}, "e": None, "f": True}
    text = strict_json.dumps(value)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": "é"}, "e": None, "f": True}
    assert "é" in text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=2)
        | st.dictionaries(st.text(st.characters()) | st.integers() | st.none() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_encoded_is_read_back_as_it_is_or_refused_in_words(value: Any) -> None:
    try:
        data = strict_json.encoded(value)
    except InputError:
        return
    again = strict_json.loads(data.decode("utf-8"))
    assert strict_json.encoded(again) == data
    assert json.loads(data) == again, "and any other reader agrees"


def test_an_error_names_the_place() -> None:
    with pytest.raises(InputError, match=r"^'a.b\[1\]' holds bytes that are not UTF-8: 'x\\xe9'"):
        strict_json.encoded({"a": {"b": ["fine", "x\udce9"]}})
    with pytest.raises(InputError, match=r"^'a.b' is a PosixPath, which JSON does not have"):
        strict_json.encoded({"a": {"b": Path("x")}})
    with pytest.raises(InputError, match=r"^'a' has the field 'null' twice"):
        strict_json.encoded({"a": {None: 1, "null": 2}})


def test_an_enumeration_is_its_value() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    class Size(enum.IntEnum):
        SMALL = 1

    assert strict_json.encoded({Colour.RED: [Size.SMALL, Colour.RED]}) == b'{"red": [1, "red"]}'


def test_halves_of_pairs_are_written_out() -> None:
    assert well_formed("caf\udce9 \ud83d \U0001f600 é") == "caf\\xe9 \\ud83d \U0001f600 é"
