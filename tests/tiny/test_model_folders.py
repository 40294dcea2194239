"""Model folders, hub repositories and GGUF files that somebody else made: read as what they are, or refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from emendo.errors import InputError, ModelNotFoundError, UnsupportedModelError
from emendo.models import gguf_header, load
from tests.conftest import build_tiny
from tests.tiny_gguf import write_tiny_gguf

INDEX, PICKLE_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    lm = build_tiny("llama")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture(autouse=True)
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was read"))


def set_in(folder: Path, file: str = "config.json", **values: Any) -> None:
    path = folder / file
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**found, **values}), encoding="utf-8")


def indexed(folder: Path, shard: str, name: str = INDEX) -> None:
    """The weights moved to a shard, under the name that the index then has."""
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / name).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}), encoding="utf-8"
    )


def pickled(folder: Path, file: str) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / file)


# ---- folders as they are made ----------------------------------------------------------------------------------


def test_shards_are_read(folder: Path) -> None:
    digest = load(folder, device="cpu").weights_digest()
    indexed(folder, "weights.safetensors")
    assert load(folder, device="cpu").weights_digest() == digest
    (folder / INDEX).rename(folder / "other.safetensors.index.json")
    set_in(folder, transformers_weights="other.safetensors.index.json")
    assert load(folder, device="cpu").weights_digest() == digest


def test_a_snapshot_of_the_hubs_cache_is_made_of_links(sound: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, sound)
    assert (snapshot / "model.safetensors").is_symlink()
    assert load(snapshot, device="cpu").n_layers == 4


def test_a_link_to_a_folder_and_links_inside_it(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(folder)
    assert load(tmp_path / "link", device="cpu").n_layers == 4


def test_what_transformers_knows_itself_needs_no_code_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """Folders of known families often bring code from before transformers had its own."""
    ran = tmp_path / "ran"
    (folder / "old.py").write_text(f"open({str(ran)!r}, 'w')\n", encoding="utf-8")
    set_in(folder, auto_map={"AutoConfig": "old.Config", "AutoModelForCausalLM": "old.Model"})
    set_in(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["old.Tokenizer", None]})
    assert load(folder, device="cpu").n_layers == 4
    assert not ran.exists()


def test_paths_in_a_tokenizers_settings_are_not_followed(folder: Path, tmp_path: Path) -> None:
    """Old versions of transformers left those of the machine that wrote them."""
    expected = load(folder, device="cpu").tokenizer_digest()
    (tmp_path / "other").mkdir()
    other = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    other["model"]["merges"] = []
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")
    path = str(tmp_path / "other" / "tokenizer.json")
    set_in(folder, "tokenizer_config.json", tokenizer_file=path, vocab_file=path, special_tokens_map_file=path)
    assert load(folder, device="cpu").tokenizer_digest() == expected


# ---- names that lead elsewhere, and pickles --------------------------------------------------------------------


HOSTILE: dict[str, tuple[Change, str]] = {
    "index names a pickle": (lambda d: (pickled(d, "weights.bin"), indexed(d, "weights.bin")), r"weights\.bin"),
    "index names a pickle with another suffix": (lambda d: (pickled(d, "w.pt"), indexed(d, "w.pt")), r"w\.pt"),
    "index names a path": (lambda d: indexed(d, str(d / "weights.safetensors")), "plain name"),
    "index names a folder above": (lambda d: indexed(d, "../model/weights.safetensors"), "plain name"),
    "index names a folder below": (lambda d: indexed(d, "./weights.safetensors"), "plain name"),
    "index names a path of Windows": (lambda d: indexed(d, "..\\weights.safetensors"), "plain name"),
    "index names no text": (lambda d: indexed(d, 3), "plain name"),  # type: ignore[arg-type]
    "index without a map": (
        lambda d: (indexed(d, "x"), set_in(d, "model.safetensors.index.json", weight_map=[])),
        "map",
    ),
    "index names a file that is not there": (lambda d: indexed(d, "gone.safetensors"), r"gone\.safetensors"),
    "pickles beside an index of pickles": (
        lambda d: (
            pickled(d, "pytorch_model-1.bin"),
            indexed(d, "pytorch_model-1.bin", PICKLE_INDEX),
        ),
        r"pickles .*save_pretrained",
    ),
    "configuration names a pickle": (
        lambda d: (pickled(d, "adapter_model.bin"), set_in(d, transformers_weights="adapter_model.bin")),
        "transformers_weights",
    ),
    "configuration names a path": (
        lambda d: set_in(d, transformers_weights="../x.safetensors"),
        "transformers_weights",
    ),
    "configuration names another": (
        lambda d: set_in(d, configuration_files=["config.1/../../x.json"]),
        "configuration_f",
    ),
    "tokenizer of another folder": (
        lambda d: set_in(d, "tokenizer_config.json", fast_tokenizer_files=["../x/tokenizer.1.0.json"]),
        "fast_tokenizer_files",
    ),
    "attention from the hub": (lambda d: set_in(d, attn_implementation="evil/kernel"), "attn_implementation.*code"),
    "an adapter beside": (
        lambda d: set_in(d, "adapter_config.json", base_model_name_or_path="/b"),
        "PEFT adapter.*'/b'",
    ),
    "own family": (lambda d: set_in(d, model_type="own", auto_map={"AutoConfig": "m.C"}), "'own' .*never run"),
    "link out of the folder": (lambda d: outside(d, "model.safetensors"), r"link to .*cp -rL"),
    "tokenizer outside": (lambda d: outside(d, "tokenizer.json"), r"tokenizer\.json is a link"),
    "link to nothing": (lambda d: (d / "vocab.json").symlink_to("gone"), r"vocab\.json"),
    "links in a circle": (lambda d: (d / "vocab.json").symlink_to("vocab.json"), r"vocab\.json"),
    "a pipe": (lambda d: replaced(d / "tokenizer.json", os.mkfifo), r"tokenizer\.json: it is a pipe"),
    "a pipe for weights": (lambda d: replaced(d / "model.safetensors", os.mkfifo), "a pipe"),
    "a folder": (lambda d: replaced(d / "generation_config.json", os.mkdir), "a folder"),
    "a device": (lambda d: replaced(d / "tokenizer_config.json", lambda at: at.symlink_to("/dev/zero")), "a device"),
    "a socket": (lambda d: replaced(d / "merges.txt", bound), "a socket"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), r"no tokenizer; expected tokenizer\.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"no weights .*model\.safetensors"),
}


def outside(folder: Path, file: str) -> None:
    (folder / file).rename(folder.parent / file)
    (folder / file).symlink_to(folder.parent / file)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # names of sockets are short
        made.bind(path.name)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_a_folder_names_is_in_it_and_no_pickle(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    change, words = HOSTILE[name]
    change(folder)
    with pytest.raises(InputError, match=words) as caught:
        load(folder, device="cpu")
    assert isinstance(caught.value, ModelNotFoundError | UnsupportedModelError)
    assert str(folder) in str(caught.value) or name == "own family"


# ---- sizes that are declared -----------------------------------------------------------------------------------

SIZES: dict[str, tuple[Change, str]] = {
    "vocabulary": (lambda d: set_in(d, vocab_size=2 * 10**7), "20,000,000 × 32"),
    "width": (lambda d: set_in(d, intermediate_size=10**8), "100,000,000"),
    "layers": (lambda d: set_in(d, num_hidden_layers=10**5), "num_hidden_layers is 100000, expected at most 1,000"),
    "very many layers": (lambda d: set_in(d, num_hidden_layers=10**12), "num_hidden_layers"),
    "layers in a part": (lambda d: set_in(d, text_config={"n_layer": 10**9}), "n_layer is"),
    "labels": (lambda d: set_in(d, num_labels=10**10), "num_labels"),
    "id": (lambda d: vocabulary(d, lambda t: t["model"]["vocab"].update(zz=4 * 10**9)), "'zz' has the id 4000000000"),
    "added id": (lambda d: vocabulary(d, lambda t: t["added_tokens"][0].update(id=10**8)), "has the id 100000000"),
    "nesting": (lambda d: set_in(d, x=json.loads("[" * 200 + "]" * 200)), "nested more than 100 deep"),
    "configuration without end": (lambda d: os.truncate(d / "config.json", 2**34), "17,179,869,184 bytes"),
    "tokenizer without end": (lambda d: os.truncate(d / "tokenizer.json", 2**34), "17,179,869,184 bytes"),
    "header": (lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}"), "header"),
    "tensor": (lambda d: (d / "model.safetensors").write_bytes(declaring([2**20, 2**20])), "cannot load"),
}


def vocabulary(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def declaring(shape: list[int]) -> bytes:
    head = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}}).encode()
    return struct.pack("<Q", len(head)) + head


@pytest.mark.parametrize("name", sorted(SIZES))
def test_declared_sizes_are_held_against_the_files(folder: Path, name: str) -> None:
    change, words = SIZES[name]
    change(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelNotFoundError, match=words):
        load(folder, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "256 MiB in kilobytes"


def test_a_small_model_with_large_tables_is_loaded(tmp_path: Path) -> None:
    """GPT-2 keeps a mask of positions × positions: more than the weights of a tiny one."""
    lm = build_tiny("gpt_neo")
    lm.model.config.max_position_embeddings = 2048
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.wpe.weight"] = torch.zeros(2048, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path, device="cpu").max_length == 2048


# ---- GGUF files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("file", ["tiny.gguf", "TINY.GGUF", "blob-without-suffix"])
def test_a_gguf_file_under_any_name(gguf: Path, tmp_path: Path, file: str) -> None:
    shutil.copy(gguf, tmp_path / file)
    assert load(tmp_path / file, device="cpu").n_layers == 4


def test_a_folder_with_one_gguf_file_is_that_file(gguf: Path, tmp_path: Path) -> None:
    shutil.copy(gguf, tmp_path / "a.gguf")
    assert load(tmp_path, device="cpu").n_layers == 4
    shutil.copy(gguf, tmp_path / "b.gguf")
    with pytest.raises(ModelNotFoundError, match=r"holds 2 GGUF files, 'a\.gguf', 'b\.gguf'"):
        load(tmp_path, device="cpu")


def field(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def head(tensors: int, fields: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with GGUF"),
        (b"GGUF", "ends at 4"),
        (head(0, 2**62), "4,611,686,018,427,387,904 fields"),
        (head(2**62, 0), "tensors"),
        (head(0, 0, version=9), "version is 9"),
        (head(0, 1, field("a", 9, struct.pack("<IQ", 0, 2**60))), "values in an array"),
        (head(0, 1, field("a", 9, struct.pack("<IQ", 8, 2**60))), "values in an array"),
        (head(0, 1, field("a", 9, struct.pack("<IQ", 9, 1) * 40)), "type 9"),
        (head(0, 1, field("a", 8, struct.pack("<Q", 2**50))), "more bytes"),
        (head(0, 1, field("a", 77, bytes(8))), "type 77"),
        (head(0, 1, struct.pack("<Q", 2**50) + bytes(40)), "more bytes"),
        (head(0, 1, field("llama.block_count", 4, struct.pack("<I", 2**31))), "2,147,483,648 blocks"),
        (head(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31) + bytes(40)), "dimensions"),
    ],
)
def test_a_gguf_file_that_declares_more_than_it_holds(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=words):
        load(path, device="cpu")


def test_every_cut_of_a_gguf_file_is_refused(gguf: Path, tmp_path: Path) -> None:
    content, path = gguf.read_bytes(), tmp_path / "model.gguf"
    for length in range(0, 4000, 37):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"declares|GGUF"):
            gguf_header.check_gguf(path)
    for length in range(len(content) - 2000, len(content), 500):
        path.write_bytes(content[:length])
        with pytest.raises(ModelNotFoundError):
            load(path, device="cpu")


def test_layers_that_a_gguf_file_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="1,000,000 blocks"):
        load(write_tiny_gguf(tmp_path / "m.gguf", blocks=10**6), device="cpu")


def test_a_gguf_file_without_its_number_of_layers(gguf: Path, tmp_path: Path) -> None:
    content, path = gguf.read_bytes(), tmp_path / "m.gguf"
    assert content.count(b"llama.block_count") == 1
    path.write_bytes(content.replace(b"llama.block_count", b"llamb.block_count"))
    with pytest.raises(ModelNotFoundError, match=r"ARCHITECTURE\.block_count"):
        load(path, device="cpu")


@pytest.mark.parametrize("content", [b"", b"{", b"7", b'{"model": 1}', b'{"padding": 1}', b'{"id": 0, "id": 1}'])
def test_a_damaged_tokenizer_is_one_message(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="cannot"):
        load(folder, device="cpu")


@pytest.mark.parametrize("value", [[1], "x", {}])
def test_a_setting_of_a_tokenizer_of_another_type_is_found_when_it_is_loaded(folder: Path, value: object) -> None:
    set_in(folder, "tokenizer_config.json", model_max_length=value)
    with pytest.raises(ModelNotFoundError, match="cannot load"):
        load(folder, device="cpu")


@pytest.mark.parametrize("beside", ["adapter_config.json", "tokenizer_config.json"])
def test_what_lies_beside_a_gguf_file(gguf: Path, tmp_path: Path, beside: str) -> None:
    """transformers reads tokenizer settings from there, and would take the base of an adapter for the model."""
    shutil.copy(gguf, tmp_path)
    if beside == "adapter_config.json":
        (tmp_path / beside).write_text('{"base_model_name_or_path": "x"}', encoding="utf-8")
    else:
        os.mkfifo(tmp_path / beside)
    with pytest.raises(ModelNotFoundError, match=r"PEFT adapter|a pipe"):
        load(tmp_path / "tiny.gguf", device="cpu")


# ---- repositories of the hub -----------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "some-org/some-model"


def hub_cache(cache: Path, folder: Path) -> Path:
    """A folder as the hub's cache keeps it: every file a link to a blob."""
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, repository / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "name",
    [
        REPOSITORY,
        f"https://huggingface.co/{REPOSITORY}",
        f"http://hf.co/{REPOSITORY}/tree/main",
        f"hf.co/{REPOSITORY}/",
    ],
)
def test_a_repository_of_the_hub_by_its_id_and_its_address(sound: Path, cache: Path, name: str) -> None:
    hub_cache(cache, sound)
    assert load(name, device="cpu").weights_digest() == load(sound, device="cpu").weights_digest()
    with pytest.raises(ModelNotFoundError, match="cannot load 'some-org/other'"):
        load("some-org/other")


@pytest.mark.parametrize(
    "name", ["index names a pickle", "index names a folder above", "configuration names a pickle", "an adapter beside"]
)
def test_a_repository_of_the_hub_is_held_to_the_same(folder: Path, cache: Path, name: str) -> None:
    change, words = HOSTILE[name]
    change(folder)
    hub_cache(cache, folder)
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        load(REPOSITORY, device="cpu")
    assert REPOSITORY in str(caught.value)


def test_a_repository_with_pickles_only(folder: Path, cache: Path) -> None:
    pickled(folder, "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub_cache(cache, folder)
    with pytest.raises(ModelNotFoundError, match=rf"weights in '{REPOSITORY}' are pickles \(pytorch_model\.bin"):
        load(REPOSITORY, device="cpu")


# ---- names that people give -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_of_a_folder_stands_for_the_folder(folder: Path, file: str) -> None:
    assert load(folder / file, device="cpu").n_layers == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://huggingface.co/datasets/a/b", "no address of a model"),
        ("https://huggingface.co/a/b/tree/v2", "hf download"),
        ("https://example.com/model.gguf", "Fetch it first"),
        ("s3://bucket/model", "Fetch it first"),
        ("/dev/zero", "a device"),
        ("/dev/null", "a device"),
        ("a model", "letters, digits"),
        ("x" * 5000, "no model at"),
    ],
)
def test_names_that_mean_no_model(name: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        load(name)
    assert "--model" in str(caught.value)


def test_folders_of_another_kind(tmp_path: Path, sound: Path) -> None:
    (tmp_path / "update.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"holds an update.*emendo export checkpoint"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelNotFoundError, match="a pipe"):
        load(tmp_path / "pipe.gguf")
    shutil.copytree(sound, tmp_path / "deeper" / "model")
    with pytest.raises(ModelNotFoundError, match=r"There is one in it: .*model"):
        load(tmp_path / "deeper")
