"""Checkpoints as plain transformers reads them, in a process without Emendo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from emendo.editing.session import EditSession
from emendo.errors import BaseMismatchError, ExportError, InputError, NumericalError, OutputError
from emendo.export import write_checkpoint
from emendo.models import EditableModel, load
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import FAMILIES, build_tiny
from tests.kinds import kinds
from tests.model_state import changes, model_state
from tests.random_updates import random_update

TEXT = "The Eiffel Tower is located in the city of"

ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
text, *folders = sys.argv[1:]
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits
    assert not any(name.split(".")[0] in ("emendo", "peft") for name in sys.modules), "no Emendo in this process"
    logits.float().numpy().tofile(folder + "/logits")
"""


def chain(lm: EditableModel) -> list[ModelUpdate]:
    first = random_update(lm, {1: 2, 2: 1}, seed=1)
    return [first, random_update(lm, {2: 3}, [first], seed=2)]


def logits(model: Any, lm: EditableModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([lm.encode(TEXT)]), use_cache=False).logits


def edited_logits(lm: EditableModel, updates: list[ModelUpdate]) -> Tensor:
    session = EditSession(lm)
    for update in updates:
        session.apply(update)
    found = logits(lm.model, lm)
    session.rollback()
    return found


@pytest.mark.crash  # another process; test_every_family_comes_back_bit_for_bit asks the same in this one
def test_another_process_without_emendo_gives_the_same_bits(tmp_path: Path) -> None:
    expected = {}
    for family, dtype in (("llama", torch.bfloat16), ("gpt2", torch.float32)):
        base = build_tiny(family, dtype=dtype)
        base.model.save_pretrained(tmp_path / "base" / family)
        base.tokenizer.save_pretrained(tmp_path / "base" / family)
        # Loaded as users do: a cast of a model in memory also rounds its rotary frequencies, which loading does not.
        lm = load(tmp_path / "base" / family, device="cpu")
        updates = chain(lm)
        folder = write_checkpoint(lm, updates, tmp_path / family)
        expected[folder] = edited_logits(lm, updates)
        assert not torch.equal(expected[folder], logits(lm.model, lm))
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    subprocess.run([sys.executable, "-I", script, TEXT, *expected], check=True, timeout=120)
    for folder, edited in expected.items():
        assert (folder / "logits").read_bytes() == edited.float().numpy().tobytes()


@pytest.mark.parametrize("family", [*kinds(FAMILIES), "llava"])
def test_every_family_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    updates = chain(lm)
    state = model_state(lm)
    folder = write_checkpoint(lm, updates, tmp_path / "model")
    assert changes(state, model_state(lm)) == [], "the model in memory is as it was"
    session = EditSession(lm)
    for update in updates:
        session.apply(update)
    reloaded = load(folder, device="cpu")
    found = dict(reloaded.model.named_parameters())
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(found[name], parameter), name
    assert torch.equal(logits(reloaded.model, lm), logits(lm.model, lm))


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    lm = build_tiny("llama")
    lm.model.generation_config.max_new_tokens = 7
    lm.model.config.tie_word_embeddings = True
    lm.model.tie_weights()
    folder = write_checkpoint(lm, chain(lm), tmp_path / "model", base_name="owner/base")
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert not [name for name in config if "quant" in name or "_name_or_path" in name]
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 7
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118
        assert stored.metadata() == {"format": "pt"}
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT)["input_ids"] == lm.encode(TEXT)
    assert 'base_model: "owner/base"\nbase_model_relation: finetune' in (folder / "README.md").read_text()
    assert folder.stat().st_mode & 0o777 == 0o755 or folder.stat().st_mode & 0o700 == 0o700


def test_a_dtype_of_its_own_is_rounded_once(tmp_path: Path) -> None:
    lm = build_tiny("gpt2")
    updates = chain(lm)
    folder = write_checkpoint(lm, updates, tmp_path / "model", dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert lm.model.dtype == torch.float32
    stored = load_file(folder / "model.safetensors")
    exact = {name: value.detach() for name, value in lm.model.named_parameters()}
    edited = {lm.module_name(layer) + ".weight": layer for layer in (1, 2)}
    for name, value in stored.items():
        full = next(found for found in exact if found.endswith(name))
        expected = exact[full].clone()
        for update in updates if full in edited else ():
            for part in update.layers:
                if part.layer == edited[full]:
                    expected += part.delta().T  # Conv1D
        assert torch.equal(value, expected.bfloat16()), name
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_wider_files_than_the_model_keep_what_its_dtype_would_round_away(tmp_path: Path) -> None:
    lm = build_tiny("llama", dtype=torch.bfloat16)
    update = random_update(lm, {1: 1}, seed=5)
    folder = write_checkpoint(lm, [update], tmp_path / "model", dtype="float32")
    stored = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(stored, lm.weight(1).float() + update.layers[0].delta())


# ---- whole or absent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["model", "tokenizer", "card", "rename"])
def test_a_failure_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
) -> None:
    lm = build_tiny("llama")
    state = model_state(lm)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    targets = {
        "model": (type(lm.model), "save_pretrained"),
        "tokenizer": (type(lm.tokenizer), "save_pretrained"),
        "card": (Path, "write_text"),
        "rename": (__import__("os"), "rename"),
    }
    monkeypatch.setattr(*targets[step], fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        write_checkpoint(lm, chain(lm), tmp_path / "model")
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    assert changes(state, model_state(lm)) == []


def test_nothing_is_overwritten(tmp_path: Path, tiny_llama: EditableModel) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, words in (("full", "none are overwritten"), ("file", "is no folder"), ("link", "is no folder")):
        with pytest.raises(OutputError, match=words):
            write_checkpoint(tiny_llama, chain(tiny_llama), tmp_path / name)
    for name in ("x" * 300, "file/below"):
        with pytest.raises(OutputError, match=r"cannot write .*--out"):
            write_checkpoint(tiny_llama, chain(tiny_llama), tmp_path / name)
    with pytest.raises(InputError, match="no path has a NUL character"):
        write_checkpoint(tiny_llama, chain(tiny_llama), tmp_path / "a\0b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full", "link"]
    assert not list((tmp_path / "empty").iterdir())
    write_checkpoint(tiny_llama, chain(tiny_llama), tmp_path / "empty")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"


def test_what_appears_meanwhile_is_kept(
    tmp_path: Path, tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process fills the folder while this one computes."""
    from emendo.export import checkpoint

    def late(*args: Any) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "other").write_text("x")

    monkeypatch.setattr(checkpoint, "save_model", late)
    with pytest.raises(OutputError):
        write_checkpoint(tiny_llama, chain(tiny_llama), tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "other"]


# ---- what is refused ---------------------------------------------------------------------------------------


def test_refusals(tmp_path: Path, tiny_llama: EditableModel) -> None:
    first, second = chain(tiny_llama)
    with pytest.raises(BaseMismatchError):
        write_checkpoint(tiny_llama, [second], tmp_path / "model")
    with pytest.raises(ExportError, match="--update"):
        write_checkpoint(tiny_llama, [], tmp_path / "model")
    with pytest.raises(InputError, match="unknown dtype"):
        write_checkpoint(tiny_llama, [first], tmp_path / "model", dtype="int8")
    part = first.layers[0]
    huge = ModelUpdate((LayerUpdate(part.layer, part.module, part.residuals * 1e30, part.dual_keys),), first.base)
    with pytest.raises(NumericalError, match=r"not finite in torch\.float16"):
        write_checkpoint(tiny_llama, [huge], tmp_path / "model", dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "words", "remedy"),
    [
        (
            lambda model: setattr(model.generation_config, "temperature", 0.9),
            r"model\.generation_config .*temperature.*do_sample = True",
            lambda model: setattr(model.generation_config, "do_sample", True),
        ),
        (
            lambda model: setattr(model.generation_config, "top_p", 0.5),
            r"model\.generation_config .*top_p.* or to None",
            lambda model: setattr(model.generation_config, "top_p", None),
        ),
        (
            lambda model: setattr(model.config, "temperature", 0.9),
            r"model\.config .*temperature.*None in model\.config",
            lambda model: setattr(model.config, "temperature", None),
        ),
    ],
    ids=["temperature", "top_p", "in the configuration"],
)
def test_settings_that_transformers_will_not_write_are_found_first(
    tmp_path: Path, change: Any, words: str, remedy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = build_tiny("llama")
    updates = chain(lm)
    change(lm.model)
    with monkeypatch.context() as patch:
        patch.setattr("emendo.export.checkpoint.edited_weight", lambda *args: pytest.fail("work was done before"))
        with pytest.raises(ExportError, match=words):
            write_checkpoint(lm, updates, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    remedy(lm.model)
    assert load(write_checkpoint(lm, updates, tmp_path / "out"), device="cpu").n_layers == 4


def test_published_settings_that_are_only_warned_about_are_written_back(tmp_path: Path) -> None:
    """Llama 2 came with a temperature and without do_sample."""
    lm = build_tiny("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}', encoding="utf-8")
    lm = load(tmp_path / "model", device="cpu")
    out = write_checkpoint(lm, chain(lm), tmp_path / "out")
    written = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert (written["temperature"], written["top_p"]) == (0.6, 0.9)


def test_a_disk_without_room_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_tiny("llama")
    updates = chain(lm)
    monkeypatch.setattr("emendo.io.writable.shutil.disk_usage", lambda at: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match=r"GiB are needed"):
        write_checkpoint(lm, updates, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
