"""Wide factors in a file: columns that hold nothing are left out, and everything else stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from emendo.errors import UpdateFileError
from emendo.io.tensor_file import write_tensor_file
from emendo.updates.contents import FORMAT
from emendo.updates.stored import StoredUpdate
from emendo.updates.update import LayerUpdate, ModelUpdate

WIDTH, ROWS = 40, 3


def sparse(columns: list[int], seed: int) -> Tensor:
    rows = torch.zeros(ROWS, WIDTH)
    rows[:, columns] = torch.randn(ROWS, len(columns), generator=torch.Generator().manual_seed(seed))
    return rows


def update(dual: Tensor, keys: Tensor | None) -> ModelUpdate:
    return ModelUpdate((LayerUpdate(4, "experts", torch.randn(ROWS, 5), dual, keys),), {"weights_sha256": "0"})


def metadata(path: Path) -> Any:
    with safe_open(str(path), framework="pt") as stored:
        return stored.metadata()["version"], sorted(stored.keys())


def test_a_mostly_empty_update_is_small_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    dual, keys = sparse([3, 4, 30], 0), sparse([4, 31], 1)
    dual[1, 7] = -0.0  # a bit of the identity
    whole = update(dual, keys)
    path = whole.save(tmp_path / "u.safetensors")
    version, names = metadata(path)
    assert version == "3"
    assert names == [f"layer.4.{name}" for name in ("dual_columns", "dual_keys", "key_columns", "keys", "residuals")]
    with safe_open(str(path), framework="pt") as stored:
        assert stored.get_tensor("layer.4.dual_columns").tolist() == [3, 4, 7, 30]
        assert stored.get_tensor("layer.4.dual_keys").shape == (ROWS, 4)
    again = ModelUpdate.load(path)
    assert again.id == whole.id == StoredUpdate.load(path).id
    assert torch.equal(again.layers[0].dual_keys, dual)
    assert torch.equal(torch.from_numpy(StoredUpdate.load(path).layers[0].keys), keys)


@pytest.mark.parametrize("keys", [None, sparse(list(range(25)), 1)], ids=["no keys", "half"])
def test_what_is_mostly_full_is_a_file_that_older_programs_read(keys: Tensor | None, tmp_path: Path) -> None:
    whole = update(sparse([1, *range(0, WIDTH, 2)], 0), keys)
    path = whole.save(tmp_path / "u.safetensors")
    assert metadata(path)[0] == "2"
    assert not [name for name in metadata(path)[1] if "columns" in name]
    assert ModelUpdate.load(path).id == whole.id


def test_nothing_at_all(tmp_path: Path) -> None:
    for dual in (torch.zeros(ROWS, WIDTH), torch.zeros(0, WIDTH)):
        whole = ModelUpdate((LayerUpdate(4, "experts", torch.zeros(len(dual), 5), dual),), {})
        assert ModelUpdate.load(whole.save(tmp_path / "u.safetensors")).id == whole.id


HOSTILE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no width": ({}, {}),
    "another layer's width": ({}, {"widths": {"5": WIDTH}}),
    "a width that is no number": ({}, {"widths": {"4": "40"}}),
    "a width out of proportion": ({}, {"widths": {"4": 2**40}}),
    "columns beyond the width": ({}, {"widths": {"4": 20}}),
    "columns twice": ({"dual_columns": [3, 3, 30]}, {"widths": {"4": WIDTH}}),
    "columns below zero": ({"dual_columns": [-1, 4, 30]}, {"widths": {"4": WIDTH}}),
    "too few columns": ({"dual_columns": [3, 4]}, {"widths": {"4": WIDTH}}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_make_no_sense(case: str, tmp_path: Path) -> None:
    changed, header = HOSTILE[case]
    columns = torch.tensor(changed.get("dual_columns", [3, 4, 30]), dtype=torch.int32)
    tensors = {
        "layer.4.residuals": torch.ones(ROWS, 5),
        "layer.4.dual_keys": torch.ones(ROWS, 3),
        "layer.4.dual_columns": columns,
    }
    whole = {"base": {}, "preceding": [], "modules": {"4": "experts"}, "info": {}, **header}
    path = write_tensor_file(tmp_path / "u", replace(FORMAT), tensors, whole)
    for kind in (ModelUpdate, StoredUpdate):
        with pytest.raises(UpdateFileError, match="not the contents of an update"):
            kind.load(path)
