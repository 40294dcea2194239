"""Update and request files made by somebody else: a clear error or what they say, never a crash."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emendo.datasets import json_rows, loading, parse_records, read_records
from emendo.errors import InputError, NumericalError, RequestError, UpdateFileError
from emendo.io import strict_json, tensor_file
from emendo.io.tensor_file import TensorFileFormat, write_tensor_file
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate

FORMAT = TensorFileFormat("emendo.update", 2, UpdateFileError, "")
FUZZ = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def header(**changes: Any) -> dict[str, Any]:
    sound = {"base": {"name": "m", "weights_sha256": "ab"}, "preceding": [], "info": {}, "modules": {"0": "mlp"}}
    return {**sound, **changes}


def tensors(layer: str = "0", **changes: Any) -> dict[str, torch.Tensor]:
    found = {"residuals": torch.ones(1, 2), "dual_keys": torch.ones(1, 3), **changes}
    return {f"layer.{layer}.{name}": tensor for name, tensor in found.items()}


def signed(path: Path, text: str, *, entries: dict[str, Any] | None = None, data: bytes = b"") -> Path:
    """A file by hand, with a digest that is right: anybody can compute it."""
    stored = tensors()
    metadata = {"format": "emendo.update", "version": "2", "header": text}
    metadata["sha256"] = tensor_file._digest(metadata, stored)
    body, declared = b"", {}
    for name, tensor in stored.items():
        content = tensor.numpy().tobytes()
        declared[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(content)],
        }
        body += content
    head = json.dumps({"__metadata__": metadata, **declared, **(entries or {})}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body + data)
    return path


def test_the_signed_file_is_sound_where_nothing_is_wrong(tmp_path: Path) -> None:
    assert ModelUpdate.load(signed(tmp_path / "f", json.dumps(header()))).layers[0].module == "mlp"


# ---- headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"info": {}', '"info": {}, "info": {"method": "other"}', "'info' is given more than once"),
        ('"name": "m"', '"name": "m", "name": "n"', "'name' is given more than once"),
        ('"info": {}', '"info": {"x": NaN}', "NaN is no JSON number"),
        ('"info": {}', '"info": {"x": -Infinity}', "Infinity is no JSON number"),
        ('"info": {}', '"info": {"x": 1e999}', "out of range"),
        ('"info": {}', '"info": {"x": 1' + "0" * 5000 + "}", "integer string conversion"),
        ('"info": {}', '"info": {"x": ' + "[" * 101 + "]" * 101 + "}", "nested more than 100 deep"),
        ('"info": {}', '"info": {"x": ' + "[" * 50_000 + "]" * 50_000 + "}", "nested more than 100 deep"),
    ],
)
def test_json_that_is_a_trap(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = json.dumps(header())
    assert old in text
    with pytest.raises(UpdateFileError, match=words):
        ModelUpdate.load(signed(tmp_path / "f", text.replace(old, new)))


def test_more_values_than_memory_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "MOST_VALUES", 1000)
    with pytest.raises(UpdateFileError, match="expected at most 1,000"):
        ModelUpdate.load(signed(tmp_path / "f", json.dumps(header(info={"x": [[]] * 1001}))))


@pytest.mark.parametrize("declared", [2**63, 2**40, 10**9])
def test_a_length_of_terabytes_is_refused_before_anything_is_read(tmp_path: Path, declared: int) -> None:
    path = tmp_path / "f"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", declared))
        stream.truncate(2**34)  # sixteen gigabytes of nothing, which take no room
    with pytest.raises(UpdateFileError, match=r"declare .* of JSON"):
        ModelUpdate.load(path)


def test_a_tensor_of_terabytes_is_refused(tmp_path: Path) -> None:
    huge = {"layer.0.keys": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [20, 20 + 2**42]}}
    with pytest.raises(UpdateFileError, match="damaged"):
        ModelUpdate.load(signed(tmp_path / "f", json.dumps(header()), entries=huge))


def test_very_many_tensors_are_refused_before_they_are_read(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [20, 20]}
    many = {f"x{i}": empty for i in range(10_001)}
    with pytest.raises(UpdateFileError, match=r"declares 10,003 tensors, expected at most 10,000"):
        ModelUpdate.load(signed(tmp_path / "f", json.dumps(header()), entries=many))


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep: list[Any] = []
    for _ in range(101):
        deep = [deep]
    part = LayerUpdate(0, "m", torch.ones(1, 2), torch.ones(1, 3))
    with pytest.raises(InputError, match="nested more than 100 deep"):
        ModelUpdate((part,), {}, info={"x": deep}).save(tmp_path / "f")
    monkeypatch.setattr(tensor_file, "_MOST_HEADER", 4000)
    with pytest.raises(InputError, match="expected at most 4,000"):
        ModelUpdate((part,), {}, info={"x": '"' * 2000}).save(tmp_path / "f")
    assert not list(tmp_path.iterdir())
    # Whatever passes is within the limit on reading, whatever has to be escaped in it.
    for text in ("é" * 400, '"' * 400, "\\" * 400, "\x00" * 100, "\u2028" * 300):
        path = ModelUpdate((part,), {}, info={"x": text}).save(tmp_path / "f")
        assert ModelUpdate.load(path).info == {"x": text}


# ---- contents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"modules": {" 0": "mlp"}},
        {"modules": {"+0": "mlp"}},
        {"modules": {"00": "mlp"}},
        {"modules": {"-1": "mlp"}},
        {"modules": {"0_0": "mlp"}},
        {"modules": {"٠": "mlp"}},
        {"modules": {"9" * 5000: "mlp"}},
        {"modules": {"0": ["mlp"]}},
        {"modules": [["0", "mlp"]]},
        {"base": {"weights_sha256": 3}},
        {"base": [["a", "b"]]},
        {"preceding": "abc"},
        {"preceding": [1, {}]},
        {"preceding": {}},
        {"preceding": {"count": 1, "chain": "a" * 64}},
        {"preceding": {"count": 1, "chain": "a" * 64, "last": "b", "first": "c"}},
        {"preceding": {"count": 0, "chain": "a" * 64, "last": "b"}},
        {"preceding": {"count": True, "chain": "a" * 64, "last": "b"}},
        {"preceding": {"count": 1.0, "chain": "a" * 64, "last": "b"}},
        {"preceding": {"count": 1, "chain": "A" * 64, "last": "b"}},
        {"preceding": {"count": 1, "chain": None, "last": "b"}},
        {"preceding": {"count": 1, "chain": "a" * 64, "last": 3}},
        {"info": [["a", 1]]},
        {"info": None},
    ],
)
def test_headers_of_another_shape(tmp_path: Path, changes: dict[str, Any]) -> None:
    layer = next(iter(changes.get("modules", "0")))
    named = tensors(layer) if isinstance(layer, str) and len(layer) < 10 else tensors()
    path = write_tensor_file(tmp_path / "f", FORMAT, named, header(**changes))
    with pytest.raises(UpdateFileError, match="not the contents of an update"):
        ModelUpdate.load(path)


@pytest.mark.parametrize(
    "found",
    [
        tensors(residuals=torch.tensor([[1.0, float("nan")]])),
        tensors(dual_keys=torch.tensor([[1.0, float("inf"), 0.0]])),
        tensors(keys=torch.tensor([[1.0, -float("inf"), 0.0]])),
        {name: tensor.long() for name, tensor in tensors().items()},
        {name: tensor.bool() for name, tensor in tensors().items()},
        {name: tensor.to(torch.complex64) for name, tensor in tensors().items()},
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors().items()},
        tensors(residuals=torch.ones(1, 2, dtype=torch.float64)),
        tensors(keys=torch.ones(1, 3, dtype=torch.int32)),
        tensors(keys=torch.ones(1, 4)),
        tensors(residuals=torch.ones(2, 2)),
        {**tensors(), "layer.7.residuals": torch.ones(1, 2)},
        {**tensors(), "layer.0.other": torch.ones(1)},
        {},
    ],
    ids=range(14),
)
def test_tensors_that_are_no_update(tmp_path: Path, found: dict[str, torch.Tensor]) -> None:
    path = write_tensor_file(tmp_path / "f", FORMAT, found, header())
    with pytest.raises(UpdateFileError, match="not the contents of an update"):
        ModelUpdate.load(path)


def test_an_update_that_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    part = LayerUpdate(3, "m", torch.tensor([[float("nan")]]), torch.ones(1, 2))
    with pytest.raises(NumericalError, match="residuals of layer 3"):
        ModelUpdate((part,), {}).save(tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "module", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 10_000, "", "\u202e", "%s%n", "..\\up"]
)
def test_names_and_ids_are_text_and_lead_nowhere(tmp_path: Path, module: str) -> None:
    """Nothing that a file says is ever a path; a foreign module is refused where the update meets a model."""
    one = ModelUpdate(
        (LayerUpdate(0, module, torch.ones(1, 2), torch.ones(1, 3)),), {"name": module}, Predecessors.of([module])
    )
    (tmp_path / "in").mkdir()
    loaded = ModelUpdate.load(one.save(tmp_path / "in" / "f"))
    assert (loaded.layers[0].module, loaded.base["name"], loaded.preceding.last) == (module, module, module)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["in", "in/f"]


def test_links_and_devices(tmp_path: Path) -> None:
    """A link is read through, for it is the user's own path, and replaced, never written through."""
    one = ModelUpdate((LayerUpdate(0, "m", torch.ones(1, 2), torch.ones(1, 3)),), {})
    target = one.save(tmp_path / "target")
    content = target.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(target)
    assert ModelUpdate.load(link).id == one.id
    ModelUpdate((), {}).save(link)
    assert target.read_bytes() == content
    assert not link.is_symlink()
    for name in ("loop", "nowhere"):
        (tmp_path / name).symlink_to(tmp_path / name if name == "loop" else tmp_path / "missing")
        with pytest.raises(UpdateFileError, match="no file at"):
            ModelUpdate.load(tmp_path / name)
    for device in ("/dev/zero", "/dev/stdin", str(tmp_path)):
        with pytest.raises(UpdateFileError, match="no file at"):
            ModelUpdate.load(device)


# ---- fuzzing -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, ModelUpdate]:
    one = ModelUpdate(
        (LayerUpdate(0, "m", torch.ones(1, 1), torch.ones(1, 1)),), {"weights_sha256": "ab"}, info={"s": 1}
    )
    path = one.save(tmp_path_factory.mktemp("small") / "update")
    return path, path.read_bytes(), one


def same(a: ModelUpdate, b: ModelUpdate) -> bool:
    return (a.id, a.base, a.preceding, a.info) == (b.id, b.base, b.preceding, b.info)


@pytest.mark.slow
def test_every_single_byte_corruption_that_changes_meaning_is_detected(
    small: tuple[Path, bytes, ModelUpdate], tmp_path: Path
) -> None:
    """All 255 other values of every byte."""
    _, data, original = small
    path = tmp_path / "update"
    for at in range(len(data)):
        for value in range(256):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                loaded = ModelUpdate.load(path)
            except UpdateFileError:
                continue
            assert same(loaded, original), (at, value)


@FUZZ
@given(data=st.data())
def test_spliced_files(small: tuple[Path, bytes, ModelUpdate], tmp_path: Path, data: st.DataObject) -> None:
    """Bytes cut out, put in or repeated anywhere."""
    _, content, original = small
    at, end = (data.draw(st.integers(0, len(content))) for _ in range(2))
    inserted = data.draw(st.binary(max_size=20))
    path = tmp_path / "update"
    path.write_bytes(content[:at] + inserted + content[end:])
    try:
        loaded = ModelUpdate.load(path)
    except UpdateFileError:
        return
    assert same(loaded, original)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("base", "preceding", "info", "modules")


@FUZZ
@given(
    changes=st.dictionaries(st.sampled_from([*FIELDS, "new"]), JSON),
    dropped=st.sets(st.sampled_from(FIELDS), max_size=2),
)
def test_signed_files_with_any_header(tmp_path: Path, changes: dict[str, Any], dropped: set[str]) -> None:
    """The digest is right: an error in words, or an update that can be stored again and is the same."""
    found = {name: value for name, value in header(**changes).items() if name not in dropped}
    path = signed(tmp_path / "f", json.dumps(found))
    try:
        loaded = ModelUpdate.load(path)
    except UpdateFileError:
        return
    try:
        again = loaded.save(tmp_path / "g")
    except InputError:  # half of a surrogate pair, which JSON can escape and no file can hold
        assert "ud8" in json.dumps(found) or "ud9" in json.dumps(found) or "\\ud" in json.dumps(found)
        return
    assert same(ModelUpdate.load(again), loaded)


# ---- request files -------------------------------------------------------------------------------------------

SOUND = {"prompt": "{} is in", "subject": "Rome", "target": "Italy"}


@FUZZ
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from([*SOUND, "id", "paraphrase_prompts", "x"]), JSON), min_size=1, max_size=3
    )
)
def test_request_files_of_any_json(rows: list[dict[str, Any]]) -> None:
    text = "\n".join(json.dumps({**SOUND, **row}) for row in rows)
    try:
        records = parse_records(text, "f")
    except RequestError as refused:
        str(refused).encode()  # what is shown can be shown
        return
    assert len(records) == len(rows)
    for record in records:
        assert record.request.text.encode()


@FUZZ
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_request_files_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError):
        read_records(path)


@FUZZ
@given(at=st.integers(0, 200), inserted=st.binary(max_size=4), cut=st.integers(0, 4))
def test_request_files_with_damage(tmp_path: Path, at: int, inserted: bytes, cut: int) -> None:
    content = "\n".join(json.dumps({**SOUND, "subject": name}) for name in ("Rome", "Milan", "Turin")).encode()
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content[:at] + inserted + content[at + cut :])
    try:
        records = read_records(path)
    except RequestError:
        return
    assert all(record.request.text.encode() for record in records)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": ' + "[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("1" + "0" * 5000, "not JSON"),
        ('{"prompt": "{} is", "prompt": "{} was", "subject": "a", "target": "b"}', "more than once"),
        ('{"prompt": "{} is", "subject": NaN, "target": "b"}', "must be a string"),
        ('{"prompt": "{} is", "subject": "a", "target": 1e999}', "a number with a point"),
    ],
)
def test_bombs_in_request_files(line: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse_records(line, "f")
    assert len(str(caught.value)) < 2000


def test_sizes_of_request_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(SOUND) + "\n")
    monkeypatch.setattr(loading, "MOST_BYTES", path.stat().st_size)
    assert len(read_records(path)) == 1
    with path.open("a") as stream:
        stream.write("\n")
    with pytest.raises(RequestError, match="more than"):
        read_records(path)
    if sys.platform == "linux":
        with pytest.raises(RequestError):
            read_records("/dev/zero")
    monkeypatch.setattr(json_rows, "MOST_ROW", 100)
    long = json.dumps({**SOUND, "id": "x" * 100})
    with pytest.raises(RequestError, match=r"line 2: has .* characters, expected at most 100"):
        parse_records(f"{json.dumps(SOUND)}\n{long}", "f")


def test_a_file_of_something_else_is_one_short_message() -> None:
    with pytest.raises(RequestError, match=r"none of its 5,000 row.s. is a JSON object") as caught:
        parse_records("x\n" * 5000, "f")
    assert len(caught.value.problems) == 4
    assert caught.value.problems[-1] == "and 4,997 more like these"
