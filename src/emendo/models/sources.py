"""What the name of a model means: the demo model, one that knows a world, a GGUF file, a folder or an id of the hub."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emendo.errors import ModelNotFoundError
from emendo.io.plain_file import check_plain
from emendo.models.folder import ADAPTER_CONFIG, CONFIG, check_settings
from emendo.models.gguf_header import has_magic
from emendo.worlds import PREFIX

DEMO = "demo"

_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(.*)", re.IGNORECASE)
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_NOT_MODELS = ("datasets", "spaces", "collections", "papers", "docs")

_PARTS = ("model*.safetensors", "*.index.json", "tokenizer*", "pytorch_model*.bin", "generation_config.json", CONFIG)
"""Files of a model folder that people name for the whole of it."""


@dataclass(frozen=True)
class Source:
    """A place that a model can be loaded from.

    Attributes:
        kind: What it is.
        place: The folder, the GGUF file, the id, or the family of a model that knows a world.
    """

    kind: Literal["demo", "world", "gguf", "folder", "hub"]
    place: str


def find_source(name: str) -> Source:
    """What a name means, where that is certain: also an address of the hub, or one file of a folder for the folder.

    Raises:
        ModelNotFoundError: It means nothing, or something that is no model; says what it is.
    """
    if name.strip().lower() == DEMO and not Path(name).exists():
        return Source("demo", DEMO)
    if name.strip().lower().startswith(PREFIX) and not Path(name).exists():
        return Source("world", name.strip().lower().removeprefix(PREFIX))
    if address := _HUB.fullmatch(name.strip()):
        return Source("hub", _id_in(address[1], name))
    if "://" in name:
        raise ModelNotFoundError(
            f"{name!r} is an address; expected a folder, a .gguf file or an id of the hub such as 'openai-community/"
            "gpt2'. Fetch it first, and give the file or folder (--model)"
        )
    path = Path(name).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a path that no file can have
        raise ModelNotFoundError(f"no model at {name[:200]!r}: {error} (--model)") from error
    if there:
        return _in_folder(path, name) if path.is_dir() else _of_file(path, name)
    if path.suffix.lower() == ".gguf":
        raise ModelNotFoundError(f"no GGUF file at {name!r} (--model)")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.is_symlink():
        raise ModelNotFoundError(f"no model folder at {name!r} (--model)")
    if not _ID.fullmatch(name):
        raise ModelNotFoundError(
            f"{name!r} is no folder, and no id of the hub, which has letters, digits, '-', '_' and '.' (--model)"
        )
    return Source("hub", name)


def _id_in(rest: str, name: str) -> str:
    """The id in an address of the hub, which may go on to a branch or a file of it."""
    parts = [part for part in re.split(r"[?#]", rest)[0].split("/") if part]
    if parts[:1] == ["models"]:
        parts = parts[1:]
    branch = parts[3] if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve") else "main"
    if not parts or parts[0] in _NOT_MODELS or branch != "main":
        raise ModelNotFoundError(
            f"{name!r} is no address of a model's main branch; expected one such as "
            "https://huggingface.co/openai-community/gpt2. Another revision can be fetched first: hf download "
            "ID --revision REVISION --local-dir FOLDER, and give FOLDER (--model)"
        )
    return "/".join(parts[:2])


def _in_folder(folder: Path, name: str) -> Source:
    if (folder / CONFIG).exists():
        return Source("folder", str(folder))
    if (folder / ADAPTER_CONFIG).exists():
        check_settings(folder, name)  # says that it is an adapter
    ggufs = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if len(ggufs) == 1:
        return _of_file(ggufs[0], name)
    if ggufs:
        raise ModelNotFoundError(
            f"{name!r} holds {len(ggufs)} GGUF files, {', '.join(repr(path.name) for path in ggufs[:5])}; name one of "
            f"them, such as {str(ggufs[0])!r} (--model)"
        )
    inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    raise ModelNotFoundError(
        f"{name!r} holds no {CONFIG}; expected a folder written by save_pretrained{_other_kind(folder)}"
        + (f". There is one in it: {str(inside[0])!r}" if inside else "")
        + " (--model)"
    )


def _other_kind(folder: Path) -> str:
    if (folder / "update.safetensors").exists():
        return (
            ". It holds an update, which is applied to the model that it was made for: emendo export checkpoint "
            f"--model BASE --update {shlex.quote(str(folder / 'update.safetensors'))} --out NEW, and give NEW"
        )
    if (folder / "HEAD").exists() and (folder / "records").exists():
        return f". It is a ledger: give the base model and --ledger {shlex.quote(str(folder))}"
    return ""


def _of_file(path: Path, name: str) -> Source:
    try:
        check_plain(path)
        is_gguf = path.suffix.lower() == ".gguf" or has_magic(path)
    except OSError as error:
        raise ModelNotFoundError(f"cannot load {name!r}: {error} (--model)") from error
    if is_gguf:
        return Source("gguf", str(path))
    if (path.parent / CONFIG).is_file() and any(path.match(part) for part in _PARTS):
        return Source("folder", str(path.parent))
    raise ModelNotFoundError(
        f"{name!r} is a file and no GGUF; it holds no {CONFIG}. Expected the folder with {CONFIG}, the weights and the "
        "tokenizer, a .gguf file, or an id of the hub (--model)"
    )
