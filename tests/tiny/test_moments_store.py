"""The store: exact round trip, verified on load, every mismatch in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from emendo.errors import MomentsError, OutputError
from emendo.models import EditableModel
from emendo.statistics import MomentSpec, MomentStore, SecondMoment, StoredMoment, obtain_moments, read_moment
from emendo.statistics.triangle import pack_triangle, packed_bytes, unpack_triangle
from tests.conftest import build_tiny

SPEC = MomentSpec(tokens=90, length=16)


@pytest.fixture
def store(tmp_path: Path) -> MomentStore:
    return MomentStore(tmp_path / "moments")


@pytest.fixture
def stored(tiny_llama: EditableModel, store: MomentStore) -> StoredMoment:
    return obtain_moments(tiny_llama, [1], SPEC, store)[1]


def test_the_directory_follows_emendo_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path))
    assert MomentStore().root == tmp_path / "moments"


@pytest.mark.parametrize("d", [1, 2, 7, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triangles_round_trip(d: int, dtype: torch.dtype) -> None:
    matrix = torch.randn(d, d, dtype=dtype)
    matrix = matrix + matrix.T
    packed = pack_triangle(matrix)
    assert packed.numel() == d * (d + 1) // 2
    assert torch.equal(unpack_triangle(packed), matrix)


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_a_moment_survives_bit_for_bit(tiny_llama: EditableModel, store: MomentStore, accumulate: str) -> None:
    spec = replace(SPEC, accumulate=accumulate)
    written = obtain_moments(tiny_llama, [1], spec, store)[1]
    loaded = store.get(spec.fingerprint(tiny_llama, [1]), 1, tiny_llama.module_name(1))
    assert loaded is not None
    assert loaded.cached
    assert torch.equal(loaded.moment.total, written.moment.total)
    assert loaded.moment.total.dtype == getattr(torch, accumulate)
    assert loaded.moment.count == 90
    assert loaded.header == written.header


def test_the_header_says_everything(stored: StoredMoment, tiny_llama: EditableModel) -> None:
    with safe_open(stored.path, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["header"])
    assert metadata["format"] == "emendo.moment"
    assert set(header) == {"fingerprint", "layer", "module", "model", "created", "emendo_version"}
    assert header["model"] == "tiny-llama"
    assert header["module"] == tiny_llama.module_name(1)
    assert header["fingerprint"] == {
        "weights": tiny_llama.weights_digest(),
        "config": tiny_llama.config_digest(),
        "tokenizer": tiny_llama.tokenizer_digest(),
        "dtype": "float32",
        "corpus": {
            "kind": "self",
            "seed": 0,
            "temperature": 1.0,
            "top_k": None,
            "start": "uniform token",
        },
        "tokens": 90,
        "length": 16,
        "exclude_first": False,
        "accumulate": "float64",
    }


def test_every_field_changes_the_fingerprint(tiny_llama: EditableModel) -> None:
    base = SPEC.fingerprint(tiny_llama, [1])
    changes = {
        "weights": "0",
        "config": "0",
        "tokenizer": "0",
        "dtype": "bfloat16",
        "corpus": {"kind": "self", "seed": 1},
        "tokens": 91,
        "length": 17,
        "exclude_first": True,
        "accumulate": "float32",
    }
    assert set(changes) == set(base.to_json())
    digests = {replace(base, **{name: value}).digest for name, value in changes.items()}  # type: ignore[arg-type]
    assert len(digests | {base.digest}) == len(changes) + 1


def test_another_model_of_the_same_name_gets_its_own_moment(stored: StoredMoment, store: MomentStore) -> None:
    twin = build_tiny("llama", seed=1)
    other = obtain_moments(twin, [1], SPEC, store)[1]
    assert not other.cached
    assert other.path != stored.path


@pytest.mark.parametrize("damage", ["truncate", "flip", "header", "empty", "garbage"])
def test_damage_is_found_and_named(
    damage: str, stored: StoredMoment, store: MomentStore, tiny_llama: EditableModel
) -> None:
    content = bytearray(stored.path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-5] ^= 1
    elif damage == "header":
        content = content.replace(b'\\"tokens\\": 90', b'\\"tokens\\": 91')
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray(b"not a safetensors file at all")
    stored.path.write_bytes(content)
    with pytest.raises(MomentsError, match="emendo moments collect") as caught:
        obtain_moments(tiny_llama, [1], SPEC, store)
    assert stored.path.name in str(caught.value)
    assert [entry.problem is not None for entry in store.verify()] == [True]


def test_a_damaged_unfinished_state_is_named(
    tiny_llama: EditableModel, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emendo.statistics.collect import partial_path

    fingerprint = SPEC.fingerprint(tiny_llama, [1])
    path = partial_path(store.folder(fingerprint), fingerprint, [1])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut")
    with pytest.raises(MomentsError, match=r"truncated or damaged.*delete the file"):
        obtain_moments(tiny_llama, [1], SPEC, store)


def test_a_mismatch_is_an_error_in_words(stored: StoredMoment, store: MomentStore, tiny_llama: EditableModel) -> None:
    module = tiny_llama.module_name(1)
    wanted = replace(SPEC, tokens=120, exclude_first=True).fingerprint(tiny_llama, [1])
    with pytest.raises(MomentsError) as caught:
        store.require(wanted, 1, module, model="tiny-llama")
    message = str(caught.value)
    assert "tokens: found 90, expected 120" in message
    assert "exclude_first: found false, expected true" in message
    assert "weights" not in message
    assert (
        "emendo moments collect --model tiny-llama --layers 1 --corpus self --tokens 120 --length 16 "
        "--exclude-first" in message
    )
    with pytest.raises(MomentsError, match=r"module: found model\.layers\.1.*expected elsewhere"):
        read_moment(stored.path, module="elsewhere")
    with pytest.raises(MomentsError, match="tokens: found 90, expected 120"):
        read_moment(stored.path, wanted)
    assert store.require(stored.header.fingerprint, 1, module).moment.count == 90
    with pytest.raises(MomentsError, match="no second moment of"):
        MomentStore(store.root / "empty").require(wanted, 1, module)


def test_list_and_verify(stored: StoredMoment, store: MomentStore) -> None:
    (stored.path.parent / "layer-07.safetensors").write_bytes(b"broken")
    entries = store.entries()
    assert [entry.path.name for entry in entries] == ["layer-01.safetensors", "layer-07.safetensors"]
    assert entries[0].header == stored.header
    assert entries[0].size == stored.path.stat().st_size
    assert entries[0].problem is None
    assert entries[1].header is None
    assert [entry.problem is None for entry in store.verify()] == [True, False]
    assert MomentStore(store.root / "nowhere").entries() == []


def test_a_failed_write_leaves_nothing(
    stored: StoredMoment, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(store.root.rglob("*"))

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.raises(OutputError, match="EMENDO_HOME"):
        store.put(stored.moment, replace(stored.header, layer=2))
    assert sorted(store.root.rglob("*")) == before


def test_only_what_the_fingerprint_says_can_be_stored(stored: StoredMoment, store: MomentStore) -> None:
    with pytest.raises(MomentsError, match="cannot be stored"):
        store.put(SecondMoment.empty(48), stored.header)


@pytest.mark.parametrize("place", ["file/home", "/proc/emendo", "x" * 300])
def test_a_home_that_cannot_be_written_is_found_before_the_collection(
    tmp_path: Path, tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMENDO_HOME", place)
    monkeypatch.setattr("emendo.statistics.obtain.collect_moments", lambda *args, **options: pytest.fail("collected"))
    with pytest.raises(OutputError, match=r"cannot write .*set EMENDO_HOME to a directory that can be written"):
        obtain_moments(tiny_llama, [1], MomentSpec(tokens=64, length=16))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_the_moments_do_not_fit_on(
    tmp_path: Path, tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = MomentSpec(tokens=64, length=16), MomentStore(tmp_path)
    size = obtain_moments(tiny_llama, [1], spec, store)[1].path.stat().st_size
    monkeypatch.setattr("emendo.statistics.obtain.collect_moments", lambda *args, **options: pytest.fail("collected"))
    needed = packed_bytes(tiny_llama.d_in(2), "float64")
    assert size - 4000 < needed < size
    monkeypatch.setattr("emendo.io.writable.shutil.disk_usage", lambda at: SimpleNamespace(free=needed - 1))
    with pytest.raises(OutputError, match=r"GiB are needed .*EMENDO_HOME"):
        obtain_moments(tiny_llama, [2], spec, store)


def test_a_home_that_cannot_be_written_serves_what_it_holds(
    tmp_path: Path, tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments may lie on a share that is mounted to be read."""
    spec, store = MomentSpec(tokens=64, length=16), MomentStore(tmp_path)
    expected = obtain_moments(tiny_llama, [1], spec, store)[1].mean()
    monkeypatch.setattr("emendo.statistics.obtain.check_writable", lambda *args: pytest.fail("asked for nothing"))
    assert torch.equal(obtain_moments(tiny_llama, [1], spec, store)[1].mean(), expected)
