"""Updates: factors, identity, the file and its damage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.errors import InputError, UpdateFileError
from emendo.io.tensor_file import TensorFileFormat, write_tensor_file
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers

BASE = {"name": "tiny", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}


def part(layer: int = 2, n: int = 3, d_out: int = 4, d_in: int = 5, *, seed: int = 0, module: str = "") -> LayerUpdate:
    generator = torch.Generator().manual_seed(seed)
    return LayerUpdate(
        layer,
        module or f"model.layers.{layer}.mlp.down_proj",
        torch.randn(n, d_out, generator=generator),
        torch.randn(n, d_in, generator=generator),
    )


def update(*parts: LayerUpdate, **changes: Any) -> ModelUpdate:
    before = Predecessors.of(["11", "22"])
    fields: dict[str, Any] = {"base": BASE, "preceding": before, "info": {"seed": 0, "é": ["∑", None, 1.5]}}
    return ModelUpdate(tuple(parts or (part(1), part(3, seed=1))), **{**fields, **changes})


# ---- factors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("r", "q"), [((2, 3), (3, 3)), ((6,), (6, 2)), ((2, 3), (2, 3, 1)), ((), (1, 1))])
def test_factors_that_do_not_belong_together(r: tuple[int, ...], q: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"layer 7: factors of shapes|expected Tensor of floats \[n, d_"):
        LayerUpdate(7, "m", torch.zeros(r), torch.zeros(q))


def test_delta_is_the_sum_of_outer_products() -> None:
    one = part(n=3)
    naive = torch.zeros(4, 5, dtype=torch.float64)
    for row in range(3):
        naive += torch.outer(one.residuals[row].double(), one.dual_keys[row].double())
    torch.testing.assert_close(one.delta().double(), naive, rtol=1e-6, atol=1e-6)
    assert one.rank == 3
    assert torch.equal(part(n=0).delta(), torch.zeros(4, 5))


def test_merging_sums_deltas_and_orders_layers() -> None:
    parts = [part(5, 2), part(1, 1, seed=1), part(5, 3, seed=2), part(5, 0, seed=3)]
    merged = merge_layers(parts)
    assert [(one.layer, one.rank, one.module) for one in merged] == [
        (1, 1, "model.layers.1.mlp.down_proj"),
        (5, 5, "model.layers.5.mlp.down_proj"),
    ]
    expected = sum((p.delta().double() for p in parts if p.layer == 5), torch.zeros(4, 5, dtype=torch.float64))
    torch.testing.assert_close(merged[1].delta().double(), expected, rtol=1e-5, atol=1e-6)
    assert merge_layers([]) == ()
    # What comes out is not a view of what went in.
    parts[1].residuals.zero_()
    assert merged[0].residuals.abs().max() > 0


@pytest.mark.parametrize("other", [part(2, module="other"), part(2, d_in=6), part(2, d_out=6)])
def test_parts_of_different_modules_are_not_summed(other: LayerUpdate) -> None:
    with pytest.raises(InputError, match="updates of layer 2 cannot be summed"):
        merge_layers([part(2), other])


@pytest.mark.parametrize("layers", [(3, 1), (1, 1), (0, 2, 2)])
def test_an_update_has_each_layer_once_and_ascending(layers: tuple[int, ...]) -> None:
    """A file has one place a layer: a second entry would overwrite the first."""
    with pytest.raises(InputError, match="merge_layers"):
        update(*(part(layer) for layer in layers))


def test_bytes_of_the_factors() -> None:
    assert update(part(1, 3)).nbytes == 3 * (4 + 5) * 4
    half = LayerUpdate(1, "m", torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(3, 5, dtype=torch.bfloat16))
    assert update(half).nbytes == 3 * (4 + 5) * 2


# ---- identity ----------------------------------------------------------------------------------------------


def test_the_identity_is_of_the_contents() -> None:
    one = update()
    assert one.id == update().id
    assert len(one.id) == 64
    assert one.id == update(info={"other": 1}).id
    noncontiguous = [
        LayerUpdate(p.layer, p.module, p.residuals.T.contiguous().T, p.dual_keys.clone().requires_grad_())
        for p in one.layers
    ]
    assert not noncontiguous[0].residuals.is_contiguous()
    assert one.id == update(*noncontiguous).id


def test_everything_that_matters_changes_the_identity() -> None:
    first, second = part(1), part(3, seed=1)
    nudged = first.residuals.clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(9.0))
    variants = [
        update(first, second),
        update(first),
        update(second),
        update(first, second, preceding=Predecessors.of(["22", "11"])),
        update(first, second, preceding=Predecessors()),
        update(first, second, base={**BASE, "weights_sha256": "00" * 32}),
        update(dataclasses.replace(first, residuals=nudged), second),
        update(dataclasses.replace(first, module="other"), second),
        update(dataclasses.replace(first, layer=2), second),
        update(LayerUpdate(1, first.module, first.residuals.double(), first.dual_keys.double()), second),
        update(LayerUpdate(1, first.module, first.residuals.view(2, 6), first.dual_keys.reshape(5, 3)[:2]), second),
        update(dataclasses.replace(first, residuals=torch.zeros(3, 4)), second),
        update(dataclasses.replace(first, residuals=-torch.zeros(3, 4)), second),
        update(part(1, 0)),
        update(part(1, 0, d_in=6)),
    ]
    assert len({variant.id for variant in variants}) == len(variants)


# ---- the file ----------------------------------------------------------------------------------------------


def same(a: ModelUpdate, b: ModelUpdate) -> bool:
    return (
        (a.base, a.preceding, a.info, a.id) == (b.base, b.preceding, b.info, b.id)
        and [(p.layer, p.module) for p in a.layers] == [(p.layer, p.module) for p in b.layers]
        and all(
            torch.equal(p.residuals, q.residuals) and torch.equal(p.dual_keys, q.dual_keys)
            for p, q in zip(a.layers, b.layers, strict=True)
        )
    )


def test_round_trip(tmp_path: Path) -> None:
    several = update(part(2), part(10, seed=1), part(11, n=0))
    path = several.save(tmp_path / "new" / "folder" / "update.safetensors")
    loaded = ModelUpdate.load(str(path))
    assert same(several, loaded)
    # What was loaded can be saved again, over the very file that it came from.
    assert same(ModelUpdate.load(loaded.save(path)), several)
    assert same(ModelUpdate.load(update(part(0, 0)).save(tmp_path / "empty")), update(part(0, 0)))


def test_layers_may_share_their_factors(tmp_path: Path) -> None:
    """Even shares of one residual are one tensor, and slices of one solve share its memory."""
    big = torch.randn(6, 4)
    shared = update(
        LayerUpdate(1, "a", big[:3], big[3:]), LayerUpdate(2, "b", big[:3], big[:3]), LayerUpdate(3, "c", big, big)
    )
    assert same(ModelUpdate.load(shared.save(tmp_path / "update")), shared)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("x"), torch.zeros(1), "\ud800", {1: 2, "a": 3}])
def test_what_json_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="cannot be stored"):
        update(info={"x": value}).save(tmp_path / "update")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"modules": 1},
        {"modules": {"x": "m"}},
        {"modules": {"1": "m"}},
        {"modules": {"0": "m"}, "base": None},
        {"modules": {"0": "m"}, "preceding": 3},
        {"modules": {"0": "m"}, "info": 3},
        {"modules": {"0": "m", "00": "m"}},
        {"modules": {"9": "m"}},
    ],
)
def test_a_sound_file_without_an_update_in_it(tmp_path: Path, broken: dict[str, Any]) -> None:
    header = {"base": BASE, "preceding": [], "info": {}, **broken}
    fmt = TensorFileFormat("emendo.update", 1, UpdateFileError, "")
    tensors = {"layer.0.residuals": torch.zeros(1, 2), "layer.0.dual_keys": torch.zeros(1, 2)}
    tensors |= {"layer.00.residuals": torch.zeros(1, 3), "layer.00.dual_keys": torch.zeros(1, 2)}
    tensors |= {"layer.9.residuals": torch.zeros(1, 2), "layer.9.dual_keys": torch.zeros(2, 2)}
    path = write_tensor_file(tmp_path / "update", fmt, tensors, header)
    with pytest.raises(UpdateFileError, match="not the contents of an update"):
        ModelUpdate.load(path)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, bytes, ModelUpdate]:
    one = ModelUpdate((part(1, 1, 2, 2),), {"weights_sha256": "ab"}, info={"seed": 1})
    path = one.save(tmp_path / "update")
    return path, path.read_bytes(), one


def test_every_truncation_is_noticed(small: tuple[Path, bytes, ModelUpdate]) -> None:
    path, data, _ = small
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UpdateFileError):
            ModelUpdate.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(UpdateFileError):
        ModelUpdate.load(path)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed_or_harmless(small: tuple[Path, bytes, ModelUpdate], mask: int) -> None:
    path, data, original = small
    harmless = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= mask
        path.write_bytes(damaged)
        try:
            loaded = ModelUpdate.load(path)
        except UpdateFileError:
            continue
        harmless += 1
        assert same(loaded, original), at
    assert harmless < 16  # at most the padding between header and data


def test_errors_say_how_to_get_a_good_file(small: tuple[Path, bytes, ModelUpdate]) -> None:
    path, data, _ = small
    for damaged in (b"", data[:50], data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(UpdateFileError, match="emendo edit --out") as caught:
            ModelUpdate.load(path)
        assert str(path) in str(caught.value)
        assert not isinstance(caught.value, json.JSONDecodeError)
