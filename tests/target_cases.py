"""Requests and settings that the tests of the target search share, and the serial search beside them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel
from emendo.requests import EditRequest
from tests.conftest import build_tiny
from tests.target_reference import ATTENTION_OUT, SerialSearch, sentences_of, serial_search

REQUESTS = [
    EditRequest("The Tower in {} was calm that", "Paris", "the"),
    EditRequest("I wrote down that {} is", "Bordeaux", "calm"),
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The weather in {}", "Tokyo", "of Rome"),
    EditRequest("You may have heard about {}, a native speaker of", "Danielle Darrieux", "in the Rome"),
    EditRequest("{} was", "I", "the"),
]
CONTEXTS = ("{}", "The weather was calm. {}", "Therefore we opened the book again. {}")
LAYER = 1
SETTINGS = TargetSettings(steps=5, learning_rate=0.3, max_norm_ratio=2.0)


@cache
def cached_tiny(family: str, bos: bool, dtype: torch.dtype) -> EditableModel:
    """One model for many tests that leave it unchanged."""
    return build_tiny(family, bos=bos, dtype=dtype)


def oracle(
    lm: EditableModel,
    request: EditRequest,
    settings: TargetSettings,
    layer: int = LAYER,
    contexts: Sequence[str] = CONTEXTS,
) -> SerialSearch:
    """The serial search with the same settings."""
    return serial_search(
        lm.model,
        sentences_of(lm, request, contexts, settings.end_of_text),
        layer,
        site=settings.site,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        clamp_norm_factor=settings.max_norm_ratio,
        kl_factor=settings.kl_weight,
        weight_decay=settings.weight_decay,
        loss_threshold=settings.loss_threshold,
        joint_attention=ATTENTION_OUT[lm.spec.model_type] if settings.joint_attention else None,
        argmax_nll_weight=settings.argmax_nll_weight,
        kl_threshold=settings.kl_threshold,
    )


def close(found: Tensor, expected: Tensor, rtol: float) -> None:
    """Equal up to a part of the largest entry."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))
