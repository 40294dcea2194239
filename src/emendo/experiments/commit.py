"""The commit of the code that made a result, where it runs from a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_commit() -> str | None:
    """The checked-out commit, with ``+`` where tracked files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    # A git folder somewhere above an installed package is somebody else's.
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
