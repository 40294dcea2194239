"""Where Emendo keeps what it may recompute: converted demo weights and second moments."""

from __future__ import annotations

import os
from pathlib import Path


def emendo_home() -> Path:
    """The cache directory: the environment variable EMENDO_HOME, or ``~/.cache/emendo``."""
    return Path(os.environ.get("EMENDO_HOME") or Path.home() / ".cache" / "emendo").expanduser()
