"""Tensor files: whole or absent, bit for bit, and refused when they are not what they should be."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file

from emendo.errors import InputError, MomentsError, OutputError
from emendo.io import tensor_file as module
from emendo.io.tensor_file import TensorFileFormat, read_tensor_file, read_tensor_file_header, write_tensor_file

FORMAT = TensorFileFormat("emendo.test", 3, MomentsError, "do it again")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_the_header_is_read_without_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tensor_file(tmp_path / "f", FORMAT, {"a": torch.ones(1000)}, {"x": [1, "é"]})
    monkeypatch.setattr(module, "_digest", None)  # the digest is over the tensors: it would have to read them
    assert read_tensor_file_header(path, FORMAT) == {"x": [1, "é"]}
    with pytest.raises(MomentsError, match="no file at"):
        read_tensor_file_header(tmp_path / "other", FORMAT)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(MomentsError, match="truncated or damaged"):
        read_tensor_file_header(path, FORMAT)


# ---- round trips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (4, 0), (0,), (), (1, 2, 3)])
def test_round_trip_is_bitwise(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    path = write_tensor_file(tmp_path / "f", FORMAT, {"a": tensor, "b.c": tensor.clone()}, {"x": 1})
    tensors, header = read_tensor_file(path, FORMAT)
    assert header == {"x": 1}
    assert set(tensors) == {"a", "b.c"}
    for found in tensors.values():
        assert (found.dtype, found.shape) == (dtype, tensor.shape)
        assert bits(found) == bits(tensor)


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    values = torch.tensor([0x7FC00001, 0x7F800000, 0x80000000, 0x00000001, 0xFFFFFFFF], dtype=torch.uint32)
    path = write_tensor_file(tmp_path / "f", FORMAT, {"a": values.view(torch.float32)}, {})
    assert torch.equal(read_tensor_file(path, FORMAT)[0]["a"].view(torch.uint32), values)


def test_views_are_stored_as_what_they_show(tmp_path: Path) -> None:
    big = torch.arange(24.0).reshape(4, 6)
    views = {"t": big.T, "a": big[1:3], "b": big[1:3], "s": big[:, ::2], "e": big[:1].expand(3, 6), "all": big}
    views["grad"] = torch.ones(2, requires_grad=True)
    found, _ = read_tensor_file(write_tensor_file(tmp_path / "f", FORMAT, views, {}), FORMAT)
    assert all(torch.equal(found[name], view) for name, view in views.items())
    assert set(found) == set(views)


def test_no_tensors_and_unicode_headers(tmp_path: Path) -> None:
    header = {"é∑": ["\u2028", None, True, 1.5, {"": "\x00"}], "n": 2**70, "tiny": 5e-324}
    path = write_tensor_file(tmp_path / "a" / "ü" / "f", FORMAT, {}, header)
    assert read_tensor_file(path, FORMAT) == ({}, header)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(header=st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_any_json_header_comes_back(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("f") / "f"
    try:
        json.dumps(header, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(InputError, match="cannot be stored"):
            write_tensor_file(path, FORMAT, {}, header)
        return
    assert read_tensor_file(write_tensor_file(path, FORMAT, {}, header), FORMAT)[1] == header


def test_equal_contents_are_equal_files(tmp_path: Path) -> None:
    a, b = torch.ones(2), torch.zeros(3)
    one = write_tensor_file(tmp_path / "1", FORMAT, {"a": a, "b": b}, {"x": 1, "y": 2}).read_bytes()
    two = write_tensor_file(tmp_path / "2", FORMAT, {"b": b, "a": a}, {"y": 2, "x": 1}).read_bytes()
    assert module._digest({}, {"a": a, "b": b}) == module._digest({}, {"b": b, "a": a})
    assert len(one) == len(two)


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = write_tensor_file(tmp_path / "f", FORMAT, {}, {})
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


# ---- whole or absent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["save_file", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_at_any_step_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, existing: bool
) -> None:
    path = tmp_path / "f"
    if existing:
        write_tensor_file(path, FORMAT, {"a": torch.ones(2)}, {"old": True})
    before = path.read_bytes() if existing else None

    def fail(*args: Any, **kwargs: Any) -> None:
        if step == "save_file":  # a half-written temporary file is the worst case
            Path(args[1]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch if step == "save_file" else os, step, fail)
    expected = type(error) if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected):
        write_tensor_file(path, FORMAT, {"a": torch.zeros(2)}, {"old": False})
    monkeypatch.undo()
    assert files(tmp_path) == (["f"] if existing else [])
    assert (path.read_bytes() if existing else None) == before


def test_a_replaced_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_tensor_file(path, FORMAT, {"a": torch.ones(1000)}, {})
    held, _ = read_tensor_file(path, FORMAT)
    write_tensor_file(path, FORMAT, {"a": torch.zeros(2)}, {})
    assert files(tmp_path) == ["f"]
    assert torch.equal(read_tensor_file(path, FORMAT)[0]["a"], torch.zeros(2))
    assert torch.equal(held["a"], torch.ones(1000))


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = write_tensor_file(tmp_path / "f", FORMAT, {"a": torch.ones(100_000)}, {})
    held, _ = read_tensor_file(path, FORMAT)
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(size - 4096)
        stream.write(bytes(4096))
    assert torch.equal(held["a"], torch.ones(100_000))
    os.truncate(path, 100)  # a view of the mapped file would end this process here
    assert float(held["a"].sum()) == 100_000


@pytest.mark.parametrize("name", ["file/below", "file/below/deeper", "folder", "a\0b", "x" * 300])
def test_paths_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*--out"):
        write_tensor_file(tmp_path / name, FORMAT, {"a": torch.ones(2)}, {})
    assert files(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("name", ["missing", "folder", "file/below", "a\0b", "x" * 300])
def test_paths_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MomentsError, match="do it again"):
        read_tensor_file(tmp_path / name, FORMAT)


# ---- what is not a sound file ------------------------------------------------------------------------------


def crafted(path: Path, metadata: object, tensors: dict[str, Any] | None = None, data: bytes = b"") -> Path:
    """A safetensors file written by hand, whatever it declares."""
    whole = {**({} if metadata is None else {"__metadata__": metadata}), **(tensors or {})}
    head = json.dumps(whole).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def signed(header: str = "{}", *, name: str = "emendo.test", version: str = "3") -> dict[str, str]:
    metadata = {"format": name, "version": version, "header": header}
    return {**metadata, "sha256": module._digest(metadata, {})}


def test_the_crafted_file_is_sound_where_nothing_is_wrong(tmp_path: Path) -> None:
    assert read_tensor_file(crafted(tmp_path / "f", signed('{"a": 1}')), FORMAT) == ({}, {"a": 1})
    assert read_tensor_file(crafted(tmp_path / "f", signed(version="1")), FORMAT) == ({}, {})


def test_another_format_and_a_newer_version_are_named(tmp_path: Path) -> None:
    with pytest.raises(MomentsError, match=r"not an emendo\.test file.*'emendo\.update'"):
        read_tensor_file(crafted(tmp_path / "f", signed(name="emendo.update")), FORMAT)
    with pytest.raises(MomentsError, match="version '4', this Emendo reads up to 3; upgrade"):
        read_tensor_file(crafted(tmp_path / "f", signed(version="4")), FORMAT)
    save_file({"a": torch.ones(1)}, tmp_path / "f")
    with pytest.raises(MomentsError, match="its format is None"):
        read_tensor_file(tmp_path / "f", FORMAT)


@pytest.mark.parametrize("version", ["", "-1", "3.0", " 3", "²", "v3", "9" * 5000, "1e0"])
def test_versions_that_are_no_numbers(tmp_path: Path, version: str) -> None:
    with pytest.raises(MomentsError, match="has version") as caught:
        read_tensor_file(crafted(tmp_path / "f", signed(version=version)), FORMAT)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", "null", "3", '"{}"', "[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"a": 1' + "0" * 5000 + "}"],
)
def test_headers_that_are_no_objects(tmp_path: Path, header: str) -> None:
    with pytest.raises(MomentsError, match="damaged"):
        read_tensor_file(crafted(tmp_path / "f", signed(header)), FORMAT)


@pytest.mark.parametrize("missing", ["format", "version", "header", "sha256"])
def test_metadata_that_lacks_something(tmp_path: Path, missing: str) -> None:
    metadata = signed()
    del metadata[missing]
    with pytest.raises(MomentsError):
        read_tensor_file(crafted(tmp_path / "f", metadata), FORMAT)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", [2**40, 2**30], 4),
        ("F32", [2**62], 4),
        ("F32", [2**63, 0], 0),
        ("F32", [2**64, 0], 0),
        ("F32", [0, 2**63], 0),
        ("F32", [-1], 4),
        ("F32", [1.5], 4),
        ("F32", [1], 8),
        ("F32", [2], 4),
        ("F32", [1] * 10_000, 4),
        ("F4", [4], 2),
        ("F4", [2, 1], 1),
        ("F6_E2M3", [4], 3),
        ("F8_E8M0", [2], 2),
        ("C64", [1], 8),
        ("U64", [1], 8),
        ("F99", [1], 4),
    ],
)
def test_hostile_declarations_of_tensors(tmp_path: Path, dtype: str, shape: list[Any], size: int) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    with pytest.raises(MomentsError):
        read_tensor_file(crafted(tmp_path / "f", signed(), {"a": entry}, b"\1" * size), FORMAT)


@pytest.mark.parametrize("offsets", [[0, 2**62], [2**62, 2**62 + 4], [4, 0], [0, 2**64], [-4, 0], [0], "04"])
def test_hostile_offsets(tmp_path: Path, offsets: object) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    with pytest.raises(MomentsError):
        read_tensor_file(crafted(tmp_path / "f", signed(), {"a": entry}, b"\1" * 4), FORMAT)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\0" * 8,
        b"PK\x03\x04" + b"\0" * 40,
        b"\x80\x04\x95pickle",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 10**6) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 500_000) + b'{"a":' * 100_000,
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 2) + b"{}",
    ],
    ids=range(11),
)
def test_junk(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(junk)
    with pytest.raises(MomentsError, match="do it again"):
        read_tensor_file(path, FORMAT)


@settings(deadline=None, max_examples=50)
@given(junk=st.binary(max_size=64), declared=st.booleans())
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, junk: bytes, declared: bool) -> None:
    path = tmp_path_factory.mktemp("f") / "f"
    path.write_bytes((struct.pack("<Q", len(junk)) if declared else b"") + junk)
    with pytest.raises(MomentsError):
        read_tensor_file(path, FORMAT)


def test_every_truncation_and_every_flip_of_a_file_with_several_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.0, -0.0]), "b": torch.zeros(0, 2), "c": torch.ones(2, dtype=torch.bfloat16)}
    path = write_tensor_file(tmp_path / "f", FORMAT, tensors, {"k": "é"})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(MomentsError):
            read_tensor_file(path, FORMAT)
    for at in range(len(data)):
        for mask in (0x01, 0x04, 0x20, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            try:
                found, header = read_tensor_file(path, FORMAT)
            except MomentsError:
                continue
            assert header == {"k": "é"}
            assert {name: (t.dtype, t.shape, bits(t)) for name, t in found.items()} == {
                name: (t.dtype, t.shape, bits(t)) for name, t in tensors.items()
            }
