"""Uploads to a stand-in of the hub: every byte arrives, in one commit, privately, and refusals are in words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from emendo.errors import ExportError, HubError
from emendo.export import hub as hub_module
from emendo.export import push_folder, write_adapter, write_checkpoint
from tests.conftest import build_tiny
from tests.hub_stand_in import READER, WRITER, StandIn, stand_in
from tests.random_updates import random_update
from tests.tiny.conftest import Command


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    lm = build_tiny("llama")
    updates = [random_update(lm, {1: 2})]
    return {
        "adapter": write_adapter(lm, updates, root).path,
        "checkpoint": write_checkpoint(lm, updates, root / "model"),
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, with the client of this process pointed at it; large files go by LFS, which it can receive."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with stand_in() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_every_byte_arrives_in_one_commit(hub: StandIn, exports: dict[str, Path], kind: str) -> None:
    address = push_folder(exports[kind], "me/edit").address
    local = {path.name: path.read_bytes() for path in exports[kind].iterdir()}
    assert hub.repos == {"me/edit": {"private": True, "files": local}}
    assert [sorted(names) for names in hub.commits] == [sorted(local)]
    assert address.startswith(f"{hub.address}/me/edit/commit/")
    assert any(method == "PUT" for method, _ in hub.calls), "weights went as a large file"


def test_weights_of_an_earlier_upload_do_not_stay_beside_new_ones(
    hub: StandIn, exports: dict[str, Path], tmp_path: Path
) -> None:
    others = {"pytorch_model.bin": b"x", "notes.md": b"x", ".gitattributes": b"x", "old/model.safetensors": b"x"}
    hub.repos["me/edit"] = {"private": True, "files": dict(others)}
    assert push_folder(exports["checkpoint"], "me/edit").removed == ()
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for path in exports["checkpoint"].iterdir():
        (sharded / path.name).write_bytes(path.read_bytes())
    whole = sharded / "model.safetensors"
    parts = {f"model-0000{number}-of-00002.safetensors": whole.read_bytes() for number in (1, 2)}
    for name, content in (parts | {"model.safetensors.index.json": b"{}"}).items():
        (sharded / name).write_bytes(content)
    whole.unlink()
    assert push_folder(sharded, "me/edit").removed == ("model.safetensors",)
    found = push_folder(exports["adapter"], "me/edit")
    assert found.removed == (*sorted(parts), "model.safetensors.index.json")
    assert push_folder(exports["checkpoint"], "me/edit").removed == ("adapter_config.json", "adapter_model.safetensors")
    assert len(hub.commits) == 4, "one a call"
    assert hub.deleted[2] == [*sorted(parts), "model.safetensors.index.json"]
    assert hub.repos["me/edit"]["files"].keys() >= others.keys()


def test_what_happened_in_the_repository_meanwhile_is_not_overwritten(
    hub: StandIn, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = hub_module._check_visibility

    def meanwhile(*args: object, **kwargs: object) -> None:
        hub.commits.append(["model.safetensors"])
        check(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(hub_module, "_check_visibility", meanwhile)
    with pytest.raises(HubError, match=r"\(412\).*Run the same command again"):
        push_folder(exports["checkpoint"], "me/edit")


def test_the_command(
    hub: StandIn, exports: dict[str, Path], emendo: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, text, err = emendo("export", "hub", str(exports["adapter"]), "--repo", "me/edit", "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(text)
    assert (document["repo"], document["private"]) == ("me/edit", True)
    assert hub.repos["me/edit"]["private"]
    code, text, _ = emendo("export", "hub", str(exports["checkpoint"]), "--repo", "me/edit")
    assert code == 0
    assert "Taken away, as the export has no such file: adapter_config.json, adapter_model.safetensors" in " ".join(
        text.split()
    )
    code, text, _ = emendo("export", "hub", str(exports["adapter"]), "--repo", "me/open", "--public")
    assert code == 0
    assert f"{hub.address}/me/open/commit/" in text
    assert not hub.repos["me/open"]["private"]
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = emendo("export", "hub", str(exports["adapter"]), "--repo", "me/edit")
    assert code == 2
    assert "HF_TOKEN is not set" in err


def test_an_existing_repository_is_used_only_as_private_as_it_was_asked_to_be(
    hub: StandIn, exports: dict[str, Path]
) -> None:
    hub.repos["me/open"] = {"private": False, "files": {}}
    hub.repos["me/closed"] = {"private": True, "files": {}}
    with pytest.raises(ExportError, match=r"'me/open' is there and is public.*--public"):
        push_folder(exports["adapter"], "me/open")
    with pytest.raises(ExportError, match=r"'me/closed' is there and is private.*--private"):
        push_folder(exports["adapter"], "me/closed", private=False)
    assert hub.commits == []
    push_folder(exports["adapter"], "me/closed")
    push_folder(exports["adapter"], "me/open", private=False)
    assert len(hub.commits) == 2


@pytest.mark.parametrize(
    ("token", "words"),
    [("hf_unknown", r"does not accept the token in HF_TOKEN \(401\)"), (READER, r"may not write to 'me/edit' \(403\)")],
)
def test_refused_tokens(
    hub: StandIn, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch, token: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=words) as caught:
        push_folder(exports["adapter"], "me/edit")
    assert token not in str(caught.value)
    assert hub.commits == []


def test_a_broken_hub(hub: StandIn, exports: dict[str, Path]) -> None:
    hub.broken = 500
    with pytest.raises(HubError, match=r"refused the upload to 'me/edit' \(500\)"):
        push_folder(exports["adapter"], "me/edit")
    hub.broken = None
    push_folder(exports["adapter"], "me/edit")
    assert len(hub.commits) == 1, "the same call again goes through"


def test_no_hub_at_all(hub: StandIn, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"could not be reached.*HF_ENDPOINT"):
        push_folder(exports["adapter"], "me/edit", endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push_folder(exports["adapter"], "me/edit")
    assert hub.calls == []


def test_only_the_token_of_the_environment_is_used(
    hub: StandIn, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(WRITER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", " ")
    with pytest.raises(ExportError, match="HF_TOKEN is not set"):
        push_folder(exports["adapter"], "me/edit")
    assert hub.calls == []


@pytest.mark.parametrize(
    "repo",
    [
        "",
        "edit",
        "me/",
        "/edit",
        "a/b/c",
        "../x",
        "me/..",
        "me/a..b",
        "me/a--b",
        "me/a b",
        "me/a\n",
        "-me/x",
        "me/" + "x" * 97,
    ],
)
def test_names_that_are_no_repository(hub: StandIn, exports: dict[str, Path], repo: str) -> None:
    with pytest.raises(ExportError, match="--repo"):
        push_folder(exports["adapter"], repo)
    assert hub.calls == []


# ---- folders that are no export ------------------------------------------------------------------------------


@pytest.fixture
def folder(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of an export to spoil."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in exports["adapter"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_a_link_is_not_followed_into_the_upload(hub: StandIn, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("the key to everything")
    (folder / "notes.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ExportError, match=r"notes\.json.*is a link"):
        push_folder(folder, "me/edit")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "run.py", ".env", ".git.json", "id_rsa"])
def test_what_no_export_holds_is_not_uploaded(hub: StandIn, folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(ExportError, match="is no file of an export"):
        push_folder(folder, "me/edit")
    assert hub.calls == []


def test_folders_that_hold_no_export(hub: StandIn, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for other, words in ((tmp_path / "missing", "no folder"), (tmp_path / "empty", "holds no export")):
        with pytest.raises(ExportError, match=words):
            push_folder(other, "me/edit")
    (folder / "sub").mkdir()
    with pytest.raises(ExportError, match="a link or a folder"):
        push_folder(folder, "me/edit")
    (folder / "sub").rmdir()
    for damaged in ("{", "[" * 100_000):
        (folder / "adapter_config.json").write_text(damaged)
        with pytest.raises(ExportError, match="is damaged"):
            push_folder(folder, "me/edit")
    for name in ("README.md", "adapter_model.safetensors", "adapter_config.json"):
        content = (folder / name).read_bytes()
        os.remove(folder / name)
        with pytest.raises(ExportError, match="holds no export"):
            push_folder(folder, "me/edit")
        (folder / name).write_bytes(content)
    assert hub.calls == []
