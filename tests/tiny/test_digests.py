"""The digest of weights: the one of always, found by pieces where it is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import emendo.models.digests as digests
from emendo.models import EditableModel
from emendo.models.digests import weights_sha256
from emendo.models.identity import parameters_sha256


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts digests that one thread made; pieces are small, so that there are many."""
    made: list[int] = []
    monkeypatch.setattr(digests, "_PIECE", 1000)
    monkeypatch.setattr(digests, "parameters_sha256", lambda model: made.append(1) or parameters_sha256(model))
    return made


def test_a_known_model_is_recognised_by_its_pieces(
    tiny_llama: EditableModel, serial: list[int], tmp_path: Path
) -> None:
    expected = parameters_sha256(tiny_llama.model)
    for _ in range(3):
        assert weights_sha256(tiny_llama.model, folder=tmp_path, small=0) == expected
    assert len(serial) == 1
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == {"weights_sha256": expected}


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"weights_sha256": "abc"}', '{"weights_sha256": 3}'])
def test_a_damaged_memory_is_none(kept: str, tiny_llama: EditableModel, serial: list[int], tmp_path: Path) -> None:
    expected = weights_sha256(tiny_llama.model, folder=tmp_path, small=0)
    (path,) = tmp_path.iterdir()
    path.write_text(kept)
    assert weights_sha256(tiny_llama.model, folder=tmp_path, small=0) == expected
    assert len(serial) == 2


def test_every_weight_counts(tiny_llama: EditableModel, serial: list[int], tmp_path: Path) -> None:
    """One bit of any parameter, its first or its last, is another model."""
    parameters = dict(tiny_llama.model.named_parameters())
    found = {weights_sha256(tiny_llama.model, folder=tmp_path, small=0)}
    for parameter in parameters.values():
        for place in (0, -1):
            words = parameter.data.view(-1).view(torch.int32)
            words[place] ^= 1
            found.add(weights_sha256(tiny_llama.model, folder=tmp_path, small=0))
            words[place] ^= 1
    assert len(found) == len(list(tmp_path.iterdir())) == 1 + 2 * len(parameters)


def test_small_models_and_homes_that_cannot_be_written_leave_nothing(
    tiny_llama: EditableModel, serial: list[int], tmp_path: Path
) -> None:
    expected = weights_sha256(tiny_llama.model, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert weights_sha256(tiny_llama.model, folder=tmp_path / "file", small=0) == expected
