"""What is recorded with every result: the versions that can change a number."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from emendo import __version__


def versions() -> dict[str, str]:
    """Versions of Emendo, Python and the libraries that compute."""
    found = {"emendo": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
