"""What is recorded with every result: the versions that can change a number."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
def code_sha256() -> str:
    """SHA-256 over Emendo's modules and data: in a checkout, code changes and the version does not."""
    package = Path(__file__).parents[1]
    files = sorted(path for kind in ("*.py", "*.yaml", "*.toml", "*.txt") for path in package.rglob(kind))
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}|{len(content)}|".encode() + content)
    return digest.hexdigest()


@cache
def _installed(package: str) -> str:
    """Looked up once: every plan records it, and the files that say it are long."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
