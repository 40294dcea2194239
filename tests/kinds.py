"""One family of each kind: families that Emendo knows the same about are one kind, and one stands for the others.

Tests of the contract that every family has to keep (`tiny/test_families`, `test_suffix`) run over all of them. Tests of
what is built on that contract run over the kinds; the others are slow tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

ALIKE: dict[str, str] = {
    **dict.fromkeys(("gemma", "mistral", "phi3", "qwen2", "qwen3", "stablelm", "starcoder2"), "llama"),
    **dict.fromkeys(("glm", "ministral", "ministral3", "olmo", "smollm3"), "llama"),
    **dict.fromkeys(("exaone4", "glm4"), "olmo2"),
    "cohere2": "cohere",
    "codegen": "gptj",
    "gpt_neox": "phi",
    **dict.fromkeys(("dots1", "ernie4_5_moe", "glm4_moe", "hunyuan_v1_moe"), "qwen2_moe"),
    **dict.fromkeys(("mixtral", "olmoe", "phimoe", "qwen3_moe"), "qwen2_moe"),
}
"""Families whose row in the table differs from another one in names alone, as `unit/test_architecture` checks."""


FEW = ("gemma2", "gpt2", "llama", "opt")
"""Families for what depends on numbers alone: with and without a norm after the MLP, Conv1D weights, units of a ReLU
that never fire.
"""


def few(families: Iterable[str]) -> list[Any]:
    """Families as parameters of a test that asks nothing of the architecture; all but a few are slow."""
    return [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in sorted(families)]


def kinds(families: Iterable[str]) -> list[Any]:
    """Families as parameters of a test; those that another one stands for are slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in sorted(families)]
