"""Edits inside a quantised GGUF file: only levels of the edited tensors change, and what they stand for is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import emendo
from emendo import EditSession
from emendo.errors import ExportError
from emendo.export import write_gguf_in_place
from emendo.export.gguf_grid import LAYOUTS, grid_of, with_levels
from emendo.methods.settings import MomentSettings
from emendo.statistics import MomentStore
from tests.quick_plans import EIFFEL, quick_plan
from tests.tiny_gguf import write_tiny_gguf

gguf = pytest.importorskip("gguf")


class Entry:
    """A tensor as a reader gives it."""

    def __init__(self, name: str, rows: int, width: int) -> None:
        self.name, self.tensor_type, self.shape = "blk.0.ffn_down.weight", gguf.GGMLQuantizationType[name], (width, rows)
        layout = LAYOUTS[name]
        made = np.random.default_rng(0)
        data = made.integers(0, 256, (rows, width // layout.entries, layout.nbytes), dtype=np.uint8)
        scales = made.normal(0.05, 0.02, (*data.shape[:2], 2)).astype(np.float16).view(np.uint8)
        # What is read as a float of 16 bits has to be one; Q6_K keeps it at the end of a block.
        if name == "Q6_K":
            data[..., -2:] = scales[..., :2]
        else:
            data[..., :4 if name in ("Q4_1", "Q4_K") else 2] = scales[..., : 4 if name in ("Q4_1", "Q4_K") else 2]
        self.data = data.reshape(rows, -1)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_levels_stand_for_what_the_gguf_package_reads(name: str) -> None:
    entry = Entry(name, rows=3, width=512)
    grid = grid_of(entry)
    levels = torch.randint(0, LAYOUTS[name].count, (3, 512), generator=torch.Generator().manual_seed(1))
    stored = with_levels(entry, levels.to(torch.uint8))
    read = torch.from_numpy(gguf.quants.dequantize(stored.numpy(), entry.tensor_type).copy())
    torch.testing.assert_close(grid.values(levels, slice(None)), read, atol=1e-5, rtol=1e-5)
    begin, end = LAYOUTS[name].levels
    kept = np.ones(LAYOUTS[name].nbytes, dtype=bool)
    kept[begin:end] = False
    before, after = (np.asarray(one).reshape(3, -1, LAYOUTS[name].nbytes)[..., kept] for one in (entry.data, stored))
    assert np.array_equal(before, after), "scales and offsets stay"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf", inner=64, kind="Q4_1")


def test_the_file_holds_the_edit_on_its_own_grid(base: Path, tmp_path: Path) -> None:
    lm = emendo.load(base, device="cpu")
    session = EditSession(lm, store=MomentStore(tmp_path / "moments"))
    plan = quick_plan(session, [EIFFEL], layers=[1])
    moments, _ = session.second_moments([1], MomentSettings(multiple=10))
    source = base.read_bytes()
    near = write_gguf_in_place(
        lm, [plan.update], tmp_path / "near.gguf", base=base, moments=moments, rounding="nearest"
    )
    done = write_gguf_in_place(lm, [plan.update], tmp_path / "done.gguf", base=base, moments=moments)
    assert base.read_bytes() == source
    assert abs(done.layers[0].kept - 1) < abs(near.layers[0].kept - 1)
    readers = [gguf.GGUFReader(path) for path in (base, done.path)]
    different = [
        ours.name
        for theirs, ours in zip(*(reader.tensors for reader in readers), strict=True)
        if not np.array_equal(theirs.data, ours.data)
    ]
    assert different == ["blk.1.ffn_down.weight"]
    assert [one.tensor_type for one in readers[0].tensors] == [one.tensor_type for one in readers[1].tensors]
    edited = emendo.load(done.path, device="cpu")
    given, wanted = (plan.update.layers[0].keys @ weight.T for weight in (
        edited.weight(1) - lm.weight(1), plan.update.layers[0].delta()
    ))
    assert float((given * wanted).sum() / wanted.square().sum()) == pytest.approx(done.layers[0].kept, abs=1e-4)


def test_what_cannot_be_written_in_place_is_refused(base: Path, tmp_path: Path) -> None:
    lm = emendo.load(base, device="cpu")
    session = EditSession(lm, store=MomentStore(tmp_path / "moments"))
    plan = quick_plan(session, [EIFFEL], layers=[1])
    with pytest.raises(ExportError, match="second moment"):
        write_gguf_in_place(lm, [plan.update], tmp_path / "out.gguf", base=base, moments={})
    moments, _ = session.second_moments([1], MomentSettings(multiple=10))
    other = write_tiny_gguf(tmp_path / "plain.gguf", inner=64)
    with pytest.raises(ExportError, match="the very file|stored as"):
        write_gguf_in_place(lm, [plan.update], tmp_path / "out.gguf", base=other, moments=moments)
    assert not (tmp_path / "out.gguf").exists()
