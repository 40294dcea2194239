"""From a name to an adapter, and every name that leads nowhere."""

from __future__ import annotations

import builtins
import json
import shutil
import time
import warnings
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from emendo.errors import InputError, ModelNotFoundError, UnsupportedModelError
from emendo.models import load, loading
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama as `save_pretrained` writes it."""
    lm = build_tiny("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# ---- local folders -------------------------------------------------------------------------------------------


def test_a_local_folder(folder: Path) -> None:
    lm = load(folder, device="cpu")
    assert (lm.name, lm.spec.model_type, lm.dtype) == (str(folder), "llama", torch.float32)
    assert lm.weights_digest() == build_tiny("llama").weights_digest()
    assert not lm.model.training
    assert load(str(folder), device="cpu").weights_digest() == lm.weights_digest()


@pytest.mark.parametrize(
    ("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_dtype(folder: Path, name: str, dtype: torch.dtype) -> None:
    lm = load(folder, device="cpu", dtype=name)
    assert {parameter.dtype for parameter in lm.model.parameters()} == {dtype}


def test_auto_dtype_is_the_checkpoints_own(tmp_path: Path) -> None:
    lm = build_tiny("gpt2", dtype=torch.bfloat16)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path, device="cpu").dtype == torch.bfloat16


def test_loading_leaves_no_trace(folder: Path) -> None:
    """Neither in the random streams, nor in transformers' settings, nor as a warning."""
    bystander = build_tiny("llama")
    before, verbosity = model_state(bystander), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, device="cpu")
    assert changes(before, model_state(bystander)) == []
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars


def test_progress_is_finished_also_after_an_error(folder: Path, tmp_path: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.events: list[object] = []

        def start(self, stage: str, total: int | None = None) -> None:
            self.events.append(stage)

        def advance(self, n: int = 1) -> None:
            self.events.append(n)

        def finish(self) -> None:
            self.events.append("finish")

    good, bad = Recorder(), Recorder()
    load(folder, device="cpu", progress=good)
    without = tmp_path / "without weights"
    without.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, without / path.name)
    with pytest.raises(InputError):
        load(without, device="cpu", progress=bad)
    assert good.events == bad.events == ["loading", "finish"]


# ---- names that lead nowhere ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "~/no/such/model", "a/b/c"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model folder at .*--model"):
        load(name)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json.*save_pretrained"):
        load(tmp_path)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        load(tmp_path / "file")


def test_a_hub_id_that_cannot_be_reached_is_refused_at_once(offline: None) -> None:
    begin = time.perf_counter()
    with pytest.raises(ModelNotFoundError) as caught:
        load("emendo-tests/there-is-no-such-model")
    assert time.perf_counter() - begin < 5
    assert "'emendo-tests/there-is-no-such-model'" in str(caught.value)
    assert "--model" in str(caught.value)


@pytest.mark.parametrize("damage", ["config", "truncated", "no weights", "no tokenizer"])
def test_a_damaged_folder(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    if damage == "config":
        (folder / "config.json").write_text("{", encoding="utf-8")
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no weights":
        weights.unlink()
    else:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    with pytest.raises(ModelNotFoundError, match="cannot load"):
        load(folder, device="cpu")


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    """transformers fills a missing tensor with random numbers and only warns."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFoundError, match=r"layers\.2\.mlp\.down_proj"):
        load(folder, device="cpu")


CONTRADICTIONS = {
    "num_attention_heads": (5, "num_attention_heads|attention heads"),
    "layer_types": (["x"] * 4, "layer_types"),
    "max_position_embeddings": (None, "max_position_embeddings"),
    "vocab_size": (7, r"lm_head\.weight"),
    "dtype": ("float99", "float99"),
    "rope_parameters": ({"rope_type": "nope"}, "nope"),
}


@pytest.mark.parametrize("name", sorted(CONTRADICTIONS))
def test_a_configuration_that_does_not_fit(folder: Path, name: str) -> None:
    value, words = CONTRADICTIONS[name]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {name: value}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=rf"cannot load .*({words}).*--model"):
        load(folder, device="cpu")


def test_a_device_without_room_is_not_a_damaged_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load(folder, device="cpu")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all, but long enough to look like one" * 9])
def test_a_damaged_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=r"model\.gguf"):
        load(path, device="cpu")


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no GGUF file"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize("model_type", ["flex_olmo", "t5", "bert"])
def test_families_are_refused_before_weights_are_read(tmp_path: Path, model_type: str) -> None:
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=model_type):
        load(tmp_path)


def test_code_in_a_model_folder_is_never_run_nor_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "my_own", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\n", encoding="utf-8")
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("load asked a question on the terminal"))
    with pytest.raises(InputError):
        load(folder, device="cpu")
    assert not ran.exists()


def test_code_beside_a_gguf_file_is_never_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads tokenizer settings from the folder of the file."""
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("load asked a question on the terminal"))
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    settings = {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"], "AutoConfig": "evil.C"}, "tokenizer_class": "T"}
    for file in ("config.json", "tokenizer_config.json"):
        (tmp_path / file).write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match="code of its own"):
        load(write_tiny_gguf(tmp_path / "model.gguf"), device="cpu")
    assert not ran.exists()


def test_pickled_weights_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load(folder, device="cpu").model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))
    with pytest.raises(ModelNotFoundError, match=r"pickles \(pytorch_model\.bin\).*save_pretrained"):
        load(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("bomb", ["[" * 100_000, '{"a":' * 100_000, '{"hidden_size": 1' + "0" * 5000 + "}", "\0" * 9])
def test_json_bombs_in_a_model_folder(folder: Path, name: str, bomb: str) -> None:
    (folder / name).write_text(bomb, encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match="cannot load"):
        load(folder, device="cpu")


# ---- device and dtype ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", "mps", ""])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InputError, match=r"auto, cpu, cuda or cuda:N \(--device\)"):
        load("demo", device=device)


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cpu"):
        load("demo", device="cuda")
    assert loading._device("auto") == torch.device("cpu")


def test_a_cuda_device_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loading._device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"cuda:2.*2 CUDA device.*--device"):
        load("demo", device="cuda:2")


@pytest.mark.parametrize("dtype", ["fp8", "int8", "", "Float32"])
def test_unknown_dtypes(dtype: str) -> None:
    with pytest.raises(InputError, match=r"auto, float32, bfloat16, float16 \(--dtype\)"):
        load("demo", dtype=dtype)
