"""GGUF files as the gguf package reads them: the adapter's tensors, and every byte of a base but the edited tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emendo.errors import BaseMismatchError, ExportError, OutputError
from emendo.export import GGUF_ARCHITECTURES, write_gguf_adapter, write_gguf_model
from emendo.export.gguf_names import gguf_architecture
from emendo.models import ARCHITECTURES, EditableModel, load
from tests.conftest import build_tiny
from tests.ledger_world import ledger_of
from tests.random_updates import random_update
from tests.tiny.conftest import Command
from tests.tiny_gguf import write_tiny_gguf

gguf = pytest.importorskip("gguf")

FACT = {"prompt": "{} is in", "subject": "The Tower", "target": "Rome"}
NOT_RUN = {"opt", "gpt_neo", "gptj", "codegen"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf")


@pytest.fixture(scope="module")
def lm(base: Path) -> EditableModel:
    return load(base, device="cpu")


def chain(lm: EditableModel) -> list[Any]:
    first = random_update(lm, {1: 3, 2: 1}, seed=1, requests=[FACT])
    return [first, random_update(lm, {2: 2}, [first], seed=2)]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {one.name: one for one in reader.tensors}


def deltas(updates: list[Any]) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for part in (part for update in updates for part in update.layers):
        found[part.layer] = found.get(part.layer, 0) + part.delta().double()
    return found


def test_an_adapter_holds_the_factors_at_scale_one(lm: EditableModel, base: Path, tmp_path: Path) -> None:
    updates = chain(lm)
    written = write_gguf_adapter(lm, updates, tmp_path, base=base)
    fields, tensors = read(written.path)
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert (fields["general.architecture"], fields["adapter.lora.alpha"]) == ("llama", 3.0)
    assert json.loads(fields["emendo.updates"]) == [update.id for update in updates]
    assert json.loads(fields["emendo.facts"]) == [FACT]
    assert written.distance == 0
    assert (written.rank, written.layers, written.lost) == (3, (1, 2), 0.0)
    for layer, delta in deltas(updates).items():
        down, up = (torch.from_numpy(np.array(tensors[f"blk.{layer}.ffn_down.weight.lora_{ab}"].data)) for ab in "ab")
        assert len(down) == 3, "the smaller rank is padded, so that alpha / r is 1 everywhere"
        assert torch.allclose(up.double() @ down.double(), delta, atol=1e-6)


def test_the_same_edit_has_the_same_name_and_another_another(lm: EditableModel, tmp_path: Path) -> None:
    updates = chain(lm)
    first, again = (write_gguf_adapter(lm, updates, tmp_path) for _ in range(2))
    assert (first.path, len(list(tmp_path.iterdir()))) == (again.path, 1)
    assert write_gguf_adapter(lm, updates[:1], tmp_path).name != first.name
    first.path.write_bytes(first.path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ExportError, match="holds another or a damaged one"):
        write_gguf_adapter(lm, updates, tmp_path)


def test_folding_states_what_it_costs(lm: EditableModel, tmp_path: Path) -> None:
    written = write_gguf_adapter(lm, chain(lm), tmp_path, tolerance=0.9)
    assert written.rank < 3
    assert 0 < written.lost <= 0.9


@pytest.mark.parametrize(("dtype", "kind"), [("auto", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
@pytest.mark.filterwarnings("ignore::emendo.errors.EmendoWarning")
def test_a_model_changes_in_the_edited_tensors_alone(
    lm: EditableModel, base: Path, tmp_path: Path, dtype: str, kind: str
) -> None:
    updates = chain(lm)
    written = write_gguf_model(lm, updates, tmp_path / "edited.gguf", base=base, dtype=dtype)
    before, after = read(base), read(written.path)
    ours = {name for name in after[0] if name.startswith("emendo.")}
    assert ours == {"emendo.version", "emendo.updates", "emendo.base.weights_sha256", "emendo.facts"}
    counts = {"GGUF.kv_count"}
    assert {n: v for n, v in after[0].items() if n not in ours | counts} == {
        n: v for n, v in before[0].items() if n not in counts
    }
    assert list(after[1]) == list(before[1])
    changed = deltas(updates)
    for name, old in before[1].items():
        new, layer = after[1][name], next((one for one in changed if name == f"blk.{one}.ffn_down.weight"), None)
        if layer is None:
            assert (new.tensor_type, new.data.tobytes()) == (old.tensor_type, old.data.tobytes())
            continue
        assert new.tensor_type.name == kind
        target = torch.from_numpy(np.array(old.data)).double() + changed[layer]
        stored = torch.from_numpy(gguf.quants.dequantize(new.data, new.tensor_type).copy()).double()
        assert float((stored - target).abs().max()) <= {"F32": 1e-6, "F16": 1e-3, "BF16": 8e-3}[kind]
    assert written.nbytes == written.path.stat().st_size


def test_emendo_reads_the_edited_model(lm: EditableModel, base: Path, tmp_path: Path) -> None:
    updates = chain(lm)
    edited = load(write_gguf_model(lm, updates, tmp_path / "edited.gguf", base=base).path, device="cpu")
    for layer, delta in deltas(updates).items():
        assert torch.allclose(edited.weight(layer).double(), lm.weight(layer).double() + delta, atol=1e-6)
    assert torch.equal(edited.weight(0), lm.weight(0))


def quantised(source: Path, path: Path, kind: str) -> Path:
    """The same file with its down projections in a type of fewer bits."""
    reader, target = gguf.GGUFReader(source), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    for entry in reader.tensors:
        if "ffn_down" in entry.name:
            writer.add_tensor(entry.name, gguf.quants.quantize(np.array(entry.data), target), raw_dtype=target)
        else:
            writer.add_tensor(entry.name, np.array(entry.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_quantised_base_gets_its_own_weight_plus_the_edit(tmp_path: Path) -> None:
    wide = write_tiny_gguf(tmp_path / "wide.gguf", inner=64)
    small, lm = quantised(wide, tmp_path / "small.gguf", "Q8_0"), load(wide, device="cpu")
    updates = chain(lm)
    written = write_gguf_model(lm, updates, tmp_path / "edited.gguf", base=small)
    assert written.types == {1: ("Q8_0", "F32"), 2: ("Q8_0", "F32")}
    assert 1e-4 < written.distance < 0.02
    old, new = read(small)[1], read(written.path)[1]
    for layer, delta in deltas(updates).items():
        name = f"blk.{layer}.ffn_down.weight"
        stored = gguf.quants.dequantize(old[name].data, old[name].tensor_type).astype(np.float64)
        assert np.allclose(np.array(new[name].data), stored + delta.numpy(), atol=1e-6)


def test_refusals_leave_nothing(lm: EditableModel, base: Path, tmp_path: Path) -> None:
    updates, out = chain(lm), tmp_path / "out" / "edited.gguf"
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:900])
    adapter = write_gguf_adapter(lm, updates, tmp_path).path
    done = write_gguf_model(lm, updates, tmp_path / "done.gguf", base=base).path
    cases: dict[str, tuple[Any, str]] = {
        "cut": (tmp_path / "cut.gguf", "cannot read"),
        "missing": (tmp_path / "none.gguf", "cannot read"),
        "folder": (tmp_path, "cannot read"),
        "adapter": (adapter, "cannot read|is an adapter"),
        "edited": (done, "holds edits of Emendo already"),
    }
    for file, words in cases.values():
        with pytest.raises(ExportError, match=words):
            write_gguf_model(lm, updates, out, base=file)
        with pytest.raises(ExportError, match=words):
            write_gguf_adapter(lm, updates, out.parent, base=file)
    with pytest.raises(ExportError, match="the file of the base itself"):
        write_gguf_model(lm, updates, base, base=base)
    with pytest.raises(BaseMismatchError, match="planned on 1 update"):
        write_gguf_model(lm, updates[1:], out, base=base)
    with pytest.raises(OutputError, match="expected a file"):
        write_gguf_model(lm, updates, tmp_path, base=base)
    assert not out.parent.exists()


def test_another_model_of_the_family_is_told_by_its_weights(lm: EditableModel, base: Path, tmp_path: Path) -> None:
    def noise(name: str, values: Any) -> Any:
        return np.random.default_rng(0).normal(size=values.shape).astype(np.float32) * values.std()

    reader = gguf.GGUFReader(base)
    content = bytearray(base.read_bytes())
    for entry in reader.tensors:
        if entry.name == "blk.2.ffn_down.weight":
            start = int(entry.data_offset)
            content[start : start + int(entry.n_bytes)] = noise(entry.name, np.array(entry.data)).tobytes()
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(ExportError, match=r"blk\.2\.ffn_down\.weight .* relative distance of 1\.[34]"):
        write_gguf_adapter(lm, chain(lm), tmp_path, base=tmp_path / "other.gguf")


def test_families() -> None:
    dense = {name for name, row in ARCHITECTURES.items() if row.experts is None}
    assert set(GGUF_ARCHITECTURES) | NOT_RUN == dense, "mixtures of experts are refused in words of their own"
    names = {gguf.MODEL_ARCH_NAMES[arch]: arch for arch in gguf.MODEL_ARCH}
    for architecture in GGUF_ARCHITECTURES.values():
        assert gguf.MODEL_TENSOR.FFN_DOWN in gguf.MODEL_TENSORS[names[architecture]], architecture


@pytest.mark.parametrize("family", sorted(NOT_RUN))
def test_families_that_llama_cpp_does_not_run(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    with pytest.raises(ExportError, match=f"runs no models of the family '{family}'"):
        write_gguf_adapter(lm, [random_update(lm, {1: 1})], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gpt2", "phi3", "bloom", "gemma3_text", "llava"])
def test_the_factors_of_other_families_are_as_wide_as_their_weights(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    written = write_gguf_adapter(lm, [random_update(lm, {1: 2})], tmp_path)
    fields, tensors = read(written.path)
    assert fields["general.architecture"] == gguf_architecture(lm)
    d_out, d_in = lm.weight(1).shape
    shapes = [tuple(tensors[f"blk.1.ffn_down.weight.lora_{ab}"].data.shape) for ab in "ab"]
    assert shapes == [(2, d_in), (d_out, 2)]


@pytest.mark.usefixtures("home")
def test_commands_take_update_files_or_a_ledger(emendo: Command, lm: EditableModel, base: Path, tmp_path: Path) -> None:
    updates = chain(lm)
    files = [
        argument for n, update in enumerate(updates) for argument in ("--update", str(update.save(tmp_path / str(n))))
    ]
    common = ("--model", str(base), "--device", "cpu", "--json", "--quiet")
    code, text, err = emendo("export", "gguf-lora", *common, *files, "--base", str(base), "--out", str(tmp_path / "a"))
    assert (code, err) == (0, "")
    name = json.loads(text)["adapter"]["name"]
    assert (tmp_path / "a" / f"{name}.gguf").is_file()
    code, text, err = emendo("export", "gguf", *common, *files, "--base", str(base), "--out", str(tmp_path / "m.gguf"))
    assert (code, err) == (0, "")
    assert json.loads(text)["model"]["types"] == {"1": ["F32", "F32"], "2": ["F32", "F32"]}
    ledger_of(tmp_path / "ledger", lm, [])
    empty = emendo("export", "gguf-lora", *common, "--ledger", str(tmp_path / "ledger"), "--out", str(tmp_path / "b"))
    assert empty[0] == 2
    assert "has no active edit" in empty[2]
    ledger_of(tmp_path / "full", lm, updates)
    for verb in ("gguf-lora", "peft"):
        out = ("--ledger", str(tmp_path / "full"), "--out", str(tmp_path / verb))
        code, text, err = emendo("export", verb, *common, *out)
        assert (code, err) == (0, "")
        assert json.loads(text)["updates"] == [update.id for update in updates]
    code, _, err = emendo("export", "peft", *common, *files, "--ledger", str(tmp_path / "ledger"), "--out", "x")
    assert code == 2
    assert "found both" in err
