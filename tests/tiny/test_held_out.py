"""Perplexity of the packaged text: measured once for an unedited model, never taken from a file that may be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.evaluate import Perplexity, held_out, packaged_text, perplexity
from emendo.evaluate.held_out import packaged_perplexity
from emendo.models import EditableModel

Measured = list[Perplexity]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Every measurement that is really made."""
    made: Measured = []

    def counted(*args: Any, **kwargs: Any) -> Perplexity:
        made.append(perplexity(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(held_out, "perplexity", counted)
    return made


def only_file(home: Path) -> Path:
    (path,) = (home / "perplexity").iterdir()
    return path


def test_the_unedited_model_is_measured_once(tiny_llama: EditableModel, home: Path, measured: Measured) -> None:
    first = packaged_perplexity(tiny_llama)
    assert packaged_perplexity(tiny_llama) == first == perplexity(tiny_llama, packaged_text())
    assert len(measured) == 1
    assert [path.suffix for path in (home / "perplexity").iterdir()] == [".json"]


def test_an_edited_model_is_always_measured(tiny_llama: EditableModel, home: Path, measured: Measured) -> None:
    before = packaged_perplexity(tiny_llama)
    with tiny_llama.edited({1: torch.zeros_like(tiny_llama.weight(1))}):
        after = packaged_perplexity(tiny_llama)
        assert after == perplexity(tiny_llama, packaged_text()) != before
        packaged_perplexity(tiny_llama)
    assert len(measured) == 3
    only_file(home)
    assert packaged_perplexity(tiny_llama) == before


@pytest.mark.parametrize("what", ["weights_digest", "config_digest", "tokenizer_digest", "dtype", "text", "versions"])
def test_another_model_is_another_value(
    what: str, tiny_llama: EditableModel, home: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged_perplexity(tiny_llama)
    if what == "dtype":
        monkeypatch.setattr(type(tiny_llama), "dtype", property(lambda self: torch.bfloat16))
    elif what == "text":
        monkeypatch.setattr(held_out, "packaged_text", lambda: "Another text about nothing in particular.")
    elif what == "versions":
        monkeypatch.setattr(held_out, "versions", lambda: {"torch": "0"})
    else:
        monkeypatch.setattr(tiny_llama, what, lambda: "0" * 64)
    packaged_perplexity(tiny_llama)
    assert len(measured) == 2
    assert len(list((home / "perplexity").iterdir())) == 2


def changed(**numbers: Any) -> Callable[[bytes], bytes]:
    """The file with other numbers."""

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        document["perplexity"] |= numbers
        return json.dumps(document).encode()

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "no UTF-8": lambda _: b"\xff\xfe",
    "a list": lambda _: b"[]",
    "another key": lambda content: content.replace(b"float32", b"float16"),
    "another format": lambda content: content.replace(b"emendo.perplexity", b"emendo.update"),
    "endless": lambda content: content[:-2] + b" " * 2**17 + b"}\n",
    "nested": lambda _: b"[" * 60_000,
    "not a number": changed(value="3"),
    "true for a number": changed(value=True),
    "a field more": changed(more=1),
    "values of two texts": changed(value=3.5),
    "no tokens": changed(predicted_tokens=0),
    "another window": changed(window=7),
    "negative": changed(value=0.5, nll=-0.6931471805599453),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_measured_again(
    damage: str, tiny_llama: EditableModel, home: Path, measured: Measured
) -> None:
    first = packaged_perplexity(tiny_llama)
    path = only_file(home)
    sound = path.read_bytes()
    path.write_bytes(DAMAGE[damage](sound))
    assert packaged_perplexity(tiny_llama) == first
    assert len(measured) == 2
    assert path.read_bytes() == sound


def test_a_home_that_cannot_be_written_is_no_error(tiny_llama: EditableModel, home: Path, measured: Measured) -> None:
    (home / "perplexity").write_text("a file where the folder should be")
    assert packaged_perplexity(tiny_llama) == packaged_perplexity(tiny_llama)
    assert len(measured) == 2
