"""What an error advises is done, to the letter, and helps."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emendo.errors import EmendoError, ModelNotFoundError, MomentsError
from emendo.models import load
from emendo.statistics import MomentSpec, MomentStore
from tests.conftest import build_tiny
from tests.random_updates import random_update
from tests.tiny.conftest import Command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lm = build_tiny("llama")
    lm.model.save_pretrained(tmp_path / "my model")
    lm.tokenizer.save_pretrained(tmp_path / "my model")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my model"


def advice(error: EmendoError, command: str) -> list[str]:
    """The arguments of a command in a message, as a shell takes them apart."""
    text = str(error)
    quoted = re.search(re.escape(command) + r"((?: '[^']*'| [^\s',]+)+)", text)
    assert quoted, text
    return shlex.split(command + quoted[1])


def run_python(arguments: list[str]) -> None:
    """`python -c CODE` in this process, which has its libraries loaded already."""
    assert arguments[:2] == ["python", "-c"]
    exec(compile(arguments[2], "advice", "exec"), {})


def given(error: EmendoError) -> str:
    """The folder that a message says to give afterwards."""
    found = re.search(r"and give ([^ ]+(?: model-\w+)?)", str(error))
    assert found, str(error)
    return found[1]


def refused(name: str | Path) -> ModelNotFoundError:
    with pytest.raises(ModelNotFoundError) as caught:
        load(name, device="cpu")
    return caught.value


def test_pickles_are_converted_with_their_tokenizer(folder: Path) -> None:
    expected = load(folder, device="cpu")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    run_python(advice(error, "python -c"))
    converted = load(given(error), device="cpu")
    assert converted.weights_digest() == expected.weights_digest()
    assert converted.tokenizer_digest() == expected.tokenizer_digest()


def test_a_lost_tokenizer_is_written_by_transformers(folder: Path) -> None:
    shutil.copytree(folder, "ORIGINAL")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    run_python(advice(refused(folder), "python -c"))
    assert load(folder, device="cpu").tokenizer_digest() == load("ORIGINAL", device="cpu").tokenizer_digest()


@pytest.mark.parametrize("beside", ["alone", "in the folder of a model"])
def test_an_adapter_is_merged_into_its_base(folder: Path, beside: str) -> None:
    peft = pytest.importorskip("peft")
    model = build_tiny("llama").model
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(folder)
    place = Path("adapter")
    if beside != "alone":
        shutil.copytree(folder, place)
    tuned.save_pretrained(place)
    error = refused(place)
    assert str(folder) in str(error)
    run_python(advice(error, "python -c"))
    merged = load(given(error), device="cpu")
    expected = tuned.merge_and_unload().state_dict()["model.layers.1.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged.model.state_dict()["model.layers.1.self_attn.q_proj.weight"], expected)


def test_a_folder_of_links_is_copied(folder: Path) -> None:
    Path("links").mkdir()
    for path in folder.iterdir():
        Path("links", path.name).symlink_to(path)
    command = advice(refused("links"), "cp -rL")
    assert command == ["cp", "-rL", "links", "NEW"]
    subprocess.run(command, check=True)
    assert load("NEW", device="cpu").weights_digest() == load(folder, device="cpu").weights_digest()


def test_an_update_is_applied_to_its_base(folder: Path, emendo: Command) -> None:
    Path("result").mkdir()
    random_update(load(folder, device="cpu"), {1: 1}, seed=0).save(Path("result/update.safetensors"))
    command = advice(refused("result"), "emendo export checkpoint")
    code, _, err = emendo(*[str(folder) if part == "BASE" else part for part in command[1:]])
    assert code == 0, err
    assert load("NEW", device="cpu").n_layers == 4


def test_one_of_several_gguf_files_is_named(folder: Path) -> None:
    gguf = pytest.importorskip("tests.tiny_gguf")
    Path("files").mkdir()
    for name in ("a.gguf", "b.GGUF"):
        gguf.write_tiny_gguf(Path("files", name))
    found = re.search(r"such as '([^']+)'", str(refused("files")))
    assert found
    assert load(found[1], device="cpu").n_layers == 4


def test_an_attention_kernel_is_taken_out(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace("{", '{"attn_implementation": "x/y",', 1), encoding="utf-8")
    assert "Take attn_implementation out of the file" in str(refused(folder))
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert load(folder, device="cpu").n_layers == 4


@pytest.mark.parametrize("where", ["file/home", "/proc/emendo"])
def test_a_home_of_ones_own_is_set(
    folder: Path, emendo: Command, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    fact = ["--prompt", "{} is in", "--subject", "Paris", "--target", "Rome", "--set", "target.steps=1", "--no-judge"]
    monkeypatch.setenv("EMENDO_HOME", where)
    code, _, err = emendo("edit", "--model", str(folder), *fact)
    assert code == 2
    assert "set EMENDO_HOME to a directory that can be written" in err
    assert "Traceback" not in err
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
    code, _, err = emendo("edit", "--model", str(folder), *fact)
    assert code == 0, err
    assert os.path.isdir("home/moments")


def test_a_file_in_another_encoding_is_converted(folder: Path, emendo: Command) -> None:
    Path("FILE").write_bytes('{"prompt": "{} is in", "subject": "Orléans", "target": "Rome"}\n'.encode("cp1252"))
    code, _, err = emendo("data", "FILE")
    assert code == 2
    found = re.search(r"iconv -f \S+ -t UTF-8 FILE > NEW", err)
    assert found, err
    subprocess.run(found[0], shell=True, check=True)
    code, _, err = emendo("data", "NEW")
    assert code == 0, err


def test_a_second_moment_that_is_missing_is_collected_by_the_command_that_the_error_prints(
    folder: Path, emendo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "another home"))
    lm, store = load(folder, device="cpu"), MomentStore()
    spec = MomentSpec(tokens=96, length=16)
    fingerprint, module = spec.fingerprint(lm, [1]), lm.module_name(1)
    with pytest.raises(MomentsError) as refused:
        store.require(fingerprint, 1, module, model=str(folder))
    command = advice(refused.value, "emendo moments collect")
    code, _, err = emendo(*command[1:])
    assert code == 0, err
    assert store.require(fingerprint, 1, module).header.fingerprint == fingerprint
