"""A store and a session for plans on tiny models; the command `emendo` with a home and a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from emendo.cli.app import run
from emendo.editing.session import EditSession
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from tests.conftest import build_tiny

Command: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> MomentStore:
    """Moments of the tiny models, collected once for all tests: the models are the same each time."""
    return MomentStore(tmp_path_factory.mktemp("moments"))


@pytest.fixture
def session(store: MomentStore, tiny_llama: EditableModel) -> EditSession:
    return EditSession(tiny_llama, store=store)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    lm = build_tiny("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same family and shape as `model`, with other weights."""
    folder = tmp_path_factory.mktemp("other")
    lm = build_tiny("llama")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.mul_(2)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moments are collected once for all tests that do not look at them."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _own_home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what the user has remembered."""
    monkeypatch.setenv("EMENDO_HOME", str(shared_home))


@pytest.fixture
def home(shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMENDO_HOME", str(shared_home))
    monkeypatch.chdir(tmp_path)
    return shared_home


@pytest.fixture
def emendo(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command: exit code, standard output, standard error; of the process, not only of Python's streams."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(list(arguments))
        out, err = capfd.readouterr()
        return code, out, err

    return call
