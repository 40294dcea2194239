"""Fixtures of all tests. Tables and builders of tiny models are taken from here, and torch is imported with the first:
the process that hands tests out to workers needs none.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from emendo.lazy import lazy
from tests.kinds import kinds
from tests.tiny_configs import FAMILIES

if TYPE_CHECKING:
    from emendo.models import EditableModel

__getattr__ = lazy(
    __name__,
    {
        **dict.fromkeys(
            ("FLOAT32_ATTENTION", "MIXTURES", "NOT_LINEAR", "ROWS", "VARIANTS", "WRAPPED"), "tests.tiny_configs"
        ),
        **dict.fromkeys(
            ("TRAINING_TEXT", "build_tiny", "build_tokenizer", "model_type_of", "tiny_config"), "tests.tiny_models"
        ),
    },
)


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: looking through it for garbage costs a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(params=kinds(FAMILIES))
def tiny(request: pytest.FixtureRequest) -> EditableModel:
    """One tiny model for each kind of family; in slow tests, for each family."""
    from tests.tiny_models import build_tiny

    return build_tiny(request.param)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_disks() -> Iterator[None]:
    """A test cannot cut the power; that bytes are sent to the disk, and before names, is tested in test_durable.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def settled_heap() -> None:
    """What earlier tests hold stays: experiments look for garbage after every cell, in all that there is."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels: drawing takes most of a report's time, and a test that wants this looks at none."""
    figure = pytest.importorskip(
        "matplotlib.figure", reason="matplotlib is not installed: pip install 'emendo[report]'"
    )
    save = figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda *args, **more: save(*args, **{**more, "dpi": 20}))


@pytest.fixture
def tiny_llama() -> EditableModel:
    """A tiny random Llama."""
    from tests.tiny_models import build_tiny

    return build_tiny("llama")


@pytest.fixture
def tiny_gpt2() -> EditableModel:
    """A tiny random GPT-2 (Conv1D weights)."""
    from tests.tiny_models import build_tiny

    return build_tiny("gpt2")


@pytest.fixture(scope="session")
def demo_model() -> EditableModel:
    """The demo model; tests that use it leave it unchanged."""
    from emendo.errors import ModelNotFoundError
    from emendo.models import load

    try:
        return load("demo", device="cpu")
    except ModelNotFoundError as error:
        pytest.skip(str(error))
