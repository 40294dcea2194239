"""An exported folder as a repository on the Hugging Face Hub: private unless asked otherwise, and in one commit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.errors import ExportError, HubError
from emendo.progress import Watched, stage

TOKEN_VARIABLE = "HF_TOKEN"

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_MARKS = {"adapter_config.json": "adapter_model.safetensors", "config.json": "model"}
"""The configuration that tells an export, and how the name of its weights begins."""

_SUFFIXES = (".safetensors", ".json", ".md", ".txt", ".jinja", ".model")
"""What exports are made of; a folder with anything else in it is not one, and could hold a pickle or a secret."""


_LOADED = re.compile(
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|adapter_config\.json"
)
"""Files of exports that decide which weights a program loads."""


@dataclass(frozen=True)
class Upload:
    """What an upload did.

    Attributes:
        address: Of the commit.
        removed: Files of an earlier upload that it took away.
    """

    address: str
    removed: tuple[str, ...]


@checked
def push_folder(
    folder: str | Path, repo: str, *, private: bool = True, endpoint: str | None = None, progress: Watched = None
) -> Upload:
    """Upload an exported adapter or checkpoint; the repository is made where it does not exist.

    Weights, their index and an adapter's configuration that the repository holds and the export does not are taken away
    in the same commit: programs would load an earlier ``model.safetensors`` rather than the shards beside it, and an
    earlier adapter on top of a checkpoint. Other files of the repository stay.

    The token is read from the environment variable HF_TOKEN and from nowhere else.

    Args:
        folder: As `write_adapter` or `write_checkpoint` leaves it.
        repo: ``owner/name``.
        private: Visibility of a new repository, and what an existing one must be.
        endpoint: Address of the hub; None takes HF_ENDPOINT, or huggingface.co.
        progress: Told about the stage "uploading"; True: a bar.

    Raises:
        ExportError: The folder is no export, the name is none, the token is missing, or the visibility is another.
        HubError: The hub refused or was not reached; says which and what to do.
    """
    root = Path(folder).expanduser()
    files = exported_files(root)
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ExportError(f"{repo!r} is no name of a repository; expected owner/name, such as --repo me/my-edit")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise ExportError(
            f"no token: the environment variable {TOKEN_VARIABLE} is not set. Make one with write access at "
            f"https://huggingface.co/settings/tokens and export {TOKEN_VARIABLE}=hf_…"
        )
    with stage(progress, "uploading"), _in_words(repo), _no_bars():
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT") or None, token=token)
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        info = api.model_info(repo)
        _check_visibility(repo, found=bool(info.private), private=private)
        there = sorted(file.rfilename for file in info.siblings or ())
        stale = tuple(name for name in there if _LOADED.fullmatch(name) and name not in files)
        # Not upload_folder: it splits a long upload into several commits, between which half an export would be seen.
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, root / name) for name in files),
                *(CommitOperationDelete(name, is_folder=False) for name in stale),
            ],
            repo_type="model",
            commit_message=f"Upload {root.resolve().name} with Emendo",
            parent_commit=info.sha,  # so that nobody's files arrive between the look and the commit
        )
    return Upload(str(commit.commit_url), stale)


def exported_files(folder: Path) -> list[str]:
    """Names of the files of an export, all of which are uploaded.

    Raises:
        ExportError: The folder is not what an export leaves: no configuration or weights, a link, a subfolder, or a
            file of a kind that exports do not have.
    """
    if not folder.is_dir():
        raise ExportError(f"no folder at {str(folder)!r}; expected one that `emendo export peft|checkpoint` wrote")
    names = sorted(os.listdir(folder))
    for name in names:
        at = folder / name
        if at.is_symlink() or not at.is_file():
            raise ExportError(
                f"{str(at)!r} is a link or a folder, which an export has none of; nothing was uploaded. Expected the "
                "folder as `emendo export peft|checkpoint` wrote it"
            )
        if not name.endswith(_SUFFIXES) or name.startswith("."):
            raise ExportError(
                f"{str(at)!r} is no file of an export (they end in {', '.join(_SUFFIXES)}); nothing was uploaded. "
                "Move it elsewhere"
            )
    marks = [mark for mark in _MARKS if mark in names and any(name.startswith(_MARKS[mark]) for name in names)]
    if not marks or "README.md" not in names:
        raise ExportError(
            f"{str(folder)!r} holds no export: expected a README.md and adapter_config.json with its weights, or "
            "config.json with its own. Make one with `emendo export peft` or `emendo export checkpoint`"
        )
    _check_json(folder / marks[0])
    return names


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{str(path)!r} is damaged ({error}); nothing was uploaded. Export again") from error


def _check_visibility(repo: str, *, found: bool, private: bool) -> None:
    """Refuse an existing repository that is not as private as was asked."""
    if found != private:
        is_now, option = ("private", "--private") if found else ("public", "--public")
        raise ExportError(
            f"{repo!r} is there and is {is_now}; nothing was uploaded. Pass {option} to upload into it as it is, or "
            "choose another --repo"
        )


@contextmanager
def _in_words(repo: str) -> Iterator[None]:
    """Whatever the hub's client raises, as an error that says what to do."""
    try:
        yield
    except ExportError:
        raise
    # The client raises its own classes, those of its HTTP library, and RuntimeError from its threads.
    except Exception as error:
        raise HubError(_words(repo, error)) from error


def _words(repo: str, error: Exception) -> str:
    status = _status(error)
    if status == 401:
        return (
            f"the hub does not accept the token in {TOKEN_VARIABLE} (401). Make one with write access at "
            "https://huggingface.co/settings/tokens"
        )
    if status == 403:
        return (
            f"the token in {TOKEN_VARIABLE} may not write to {repo!r} (403); expected one with write access to that "
            "owner's repositories. Choose another --repo, or another token"
        )
    if status == 404:
        return f"the hub knows no {repo!r} (404), or the token in {TOKEN_VARIABLE} may not see it; check --repo"
    if status is not None:
        return f"the hub refused the upload to {repo!r} ({status}): {_first_line(error)}. Run the same command again"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it and run the same command again"
    return (
        f"the hub could not be reached or broke off ({type(error).__name__}: {_first_line(error)}). Check the network "
        "and HF_ENDPOINT and run the same command again: an upload is one commit, which is there or not"
    )


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, which the client may have wrapped."""
    while error is not None:
        status: Any = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "no message"


@contextmanager
def _no_bars() -> Iterator[None]:
    """No bars of the hub's client on the terminal; its setting comes back."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were:
            enable_progress_bars()
