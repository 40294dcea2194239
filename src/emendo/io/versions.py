"""What is recorded with every result: the versions that can change a number."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
"""Of Emendo; the build reads it here."""

UPGRADE = "upgrade Emendo (in its checkout: git pull && pip install .)"
"""What to do about a file of a later version."""


def versions() -> dict[str, str]:
    """Versions of Emendo, Python and the libraries that compute."""
    found = {"emendo": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        found[package] = _installed(package)
    return found


@cache
def _installed(package: str) -> str:
    """Looked up once: every plan records it, and the files that say it are long."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
