"""Strict JSON: any parser reads it."""

from __future__ import annotations

import json
import math

from emendo import strict_json


def test_numbers_that_are_not_finite_become_null() -> None:
    value = {"a": math.inf, "b": [1.5, math.nan, (-math.inf, 2)], "c": {"d": "é"}, "e": None, "f": True}
    text = strict_json.dumps(value)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": "é"}, "e": None, "f": True}
    assert "é" in text
