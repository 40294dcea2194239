"""`emendo export peft` and `checkpoint` as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from emendo.models import load
from tests.random_updates import random_update
from tests.tiny.conftest import Command

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def files(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two update files, the second on top of the first."""
    folder = tmp_path_factory.mktemp("updates")
    lm = load(model, device="cpu")
    first = random_update(lm, {1: 5, 2: 5}, seed=1)
    second = random_update(lm, {2: 4}, [first], seed=2)
    return str(first.save(folder / "first")), str(second.save(folder / "second"))


def test_an_adapter(emendo: Command, model: str, files: tuple[str, str], tmp_path: Path) -> None:
    chain = ("--model", model, "--update", files[0], "--update", files[1], "--device", "cpu")
    code, text, err = emendo("export", "peft", *chain, "--out", str(tmp_path / "out"), "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(text)
    written = document["adapter"]
    assert (written["rank"], written["exact_rank"], written["layers"], written["lost"]) == (16, 9, [1, 2], 0.0)
    assert len(document["updates"]) == 2
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), written["path"])
    code, text, _ = emendo("export", "peft", *chain, "--out", str(tmp_path / "folded"), "--fold", "0.9")
    assert code == 0
    assert "folded to within" in text


def test_a_checkpoint(emendo: Command, model: str, files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "model"
    chain = ("--model", model, "--update", files[0], "--update", files[1], "--device", "cpu")
    code, text, err = emendo("export", "checkpoint", *chain, "--out", str(out), "--dtype", "bfloat16")
    assert code == 0, err
    assert "Checkpoint:" in text
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    code, _, err = emendo("export", "checkpoint", *chain, "--out", str(out))
    assert code == 2
    assert "none are overwritten" in err


def test_refusals(emendo: Command, model: str, files: tuple[str, str], tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    (tmp_path / "junk").write_bytes(b"\x80\x04\x95pickle")
    cases = {
        ("peft", "--model", model, "--update", files[1], *out): "planned on 1 update",
        ("peft", "--model", model, "--update", str(tmp_path / "junk"), *out): "truncated or damaged",
        ("peft", "--model", model, *out): "--update",
        ("peft", "--model", model, "--update", files[0], "--fold", "2", *out): "--fold",
        ("peft", "--model", model, "--update", files[0], "--out", files[0]): "is a file",
        ("checkpoint", "--model", model, "--update", files[0], "--dtype", "int4", *out): "unknown dtype",
        (
            "checkpoint",
            "--model",
            model,
            "--model-dtype",
            "bfloat16",
            "--update",
            files[0],
            *out,
        ): "load the model that it is for",
    }
    for arguments, words in cases.items():
        code, _, err = emendo("export", *arguments)
        assert code == 2, arguments
        assert words in err, arguments
    assert not (tmp_path / "out").exists()
