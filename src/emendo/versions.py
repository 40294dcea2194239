"""What is recorded with every result: the versions that can change a number."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of Emendo, Python and the libraries that compute."""
    found = {"python": platform.python_version()}
    for package in ("emendo", "torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
