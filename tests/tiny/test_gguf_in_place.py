"""Edits inside a quantised GGUF file: only levels of the edited tensors change, and what they stand for is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import emendo
from emendo import EditSession
from emendo.errors import ExportError
from emendo.export import write_gguf_in_place
from emendo.export.gguf_grid import LAYOUTS, grid_of, with_levels
from emendo.export.recorded_moments import recorded_moments
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.quick_plans import EIFFEL, quick_plan
from tests.tiny_gguf import write_tiny_gguf

gguf = pytest.importorskip("gguf")


@dataclass
class Made:
    base: Path
    lm: EditableModel
    update: ModelUpdate
    moments: dict[int, torch.Tensor]


class Entry:
    """A tensor as a reader gives it."""

    def __init__(self, name: str, rows: int, width: int) -> None:
        self.name, self.tensor_type, self.shape = (
            "blk.0.ffn_down.weight",
            gguf.GGMLQuantizationType[name],
            (width, rows),
        )
        layout = LAYOUTS[name]
        made = np.random.default_rng(0)
        data = made.integers(0, 256, (rows, width // layout.entries, layout.nbytes), dtype=np.uint8)
        scales = made.normal(0.05, 0.02, (*data.shape[:2], 2)).astype(np.float16).view(np.uint8)
        # What is read as a float of 16 bits has to be one; Q6_K keeps it at the end of a block.
        if name == "Q6_K":
            data[..., -2:] = scales[..., :2]
        else:
            data[..., : 4 if name in ("Q4_1", "Q4_K") else 2] = scales[..., : 4 if name in ("Q4_1", "Q4_K") else 2]
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A file, and an edit of the model in it."""
    folder = tmp_path_factory.mktemp("in-place")
    base = write_tiny_gguf(folder / "tiny.gguf", inner=64, kind="Q4_1")
    lm = emendo.load(base, device="cpu")
    session = EditSession(lm, store=MomentStore(folder / "moments"))
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    layers, settings, seed = recorded_moments([update])
    assert (layers, seed) == ([1], session.seed)
    return Made(base, lm, update, session.second_moments(layers, settings)[0])


def test_the_file_holds_the_edit_on_its_own_grid(made: Made, tmp_path: Path) -> None:
    lm, base, part = made.lm, made.base, made.update.layers[0]
    source = base.read_bytes()
    written = {
        rounding: write_gguf_in_place(
            lm, [made.update], tmp_path / f"{rounding}.gguf", base=base, moments=made.moments, rounding=rounding
        )
        for rounding in ("feedback", "nearest")
    }
    assert base.read_bytes() == source
    kept = {rounding: file.layers[0].kept for rounding, file in written.items()}
    assert abs(kept["feedback"] - 1) < abs(kept["nearest"] - 1)
    readers = [gguf.GGUFReader(path) for path in (base, written["feedback"].path)]
    different = [
        ours.name
        for theirs, ours in zip(*(reader.tensors for reader in readers), strict=True)
        if not np.array_equal(theirs.data, ours.data)
    ]
    assert different == ["blk.1.ffn_down.weight"]
    assert [one.tensor_type for one in readers[0].tensors] == [one.tensor_type for one in readers[1].tensors]
    entry = readers[1].tensors[[one.name for one in readers[1].tensors].index(different[0])]
    read = torch.from_numpy(gguf.quants.dequantize(entry.data, entry.tensor_type).copy())
    given, wanted = (part.keys @ weight.T for weight in (read - lm.weight(1), part.delta()))
    assert float((given * wanted).sum() / wanted.square().sum()) == pytest.approx(kept["feedback"], abs=1e-4)


def test_what_cannot_be_written_in_place_is_refused(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ExportError, match="second moment"):
        write_gguf_in_place(made.lm, [made.update], out, base=made.base, moments={})
    other = write_tiny_gguf(tmp_path / "plain.gguf", inner=64)
    with pytest.raises(ExportError, match="the very file"):
        write_gguf_in_place(made.lm, [made.update], out, base=other, moments=made.moments)
    with pytest.raises(ExportError, match="base itself"):
        write_gguf_in_place(made.lm, [made.update], made.base, base=made.base, moments=made.moments)
    assert not out.exists()


def test_a_type_without_levels_to_write_is_refused_with_the_ways_that_take_it() -> None:
    entry = Entry("Q4_0", rows=2, width=32)
    entry.tensor_type = gguf.GGMLQuantizationType.F32
    with pytest.raises(ExportError, match="gguf-lora"):
        grid_of(entry)
