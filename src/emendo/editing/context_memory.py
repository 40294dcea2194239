"""Sampled contexts on the disk: they depend on the state of the model, the scheme and the seed alone.

A file that cannot be read is sampled again, and one that cannot be written is not kept: neither is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from emendo.errors import OutputError
from emendo.io import strict_json
from emendo.io.home import emendo_home
from emendo.io.versions import versions
from emendo.io.whole_file import write_json
from emendo.models import EditableModel
from emendo.requests import AnyContext

_VERSION = 1
"""Raised where the same state would give other contexts."""

SAMPLED = ("memit", "rome")
"""Schemes whose texts the model samples; the others cost nothing."""


def read_contexts(lm: EditableModel, scheme: str, seed: int) -> tuple[str, ...] | None:
    """The remembered contexts of an unedited model; None where there are none."""
    path = _path(lm, scheme, seed)
    with suppress(OSError, ValueError):
        found = strict_json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list) and found and all(isinstance(text, str) and text.count("{}") == 1 for text in found):
            return tuple(found)
    return None


def keep_contexts(lm: EditableModel, scheme: str, seed: int, contexts: Sequence[AnyContext]) -> None:
    """Remember contexts that were sampled from an unedited model."""
    with suppress(OutputError, OSError):
        path = _path(lm, scheme, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, list(contexts))


def _path(lm: EditableModel, scheme: str, seed: int) -> Path:
    state = {
        "version": _VERSION,
        "scheme": scheme,
        "seed": seed,
        "weights": lm.weights_digest(),
        "config": lm.config_digest(),
        "tokenizer": lm.tokenizer_digest(),
        "dtype": str(lm.dtype),
        "device": lm.device.type,
        "versions": {name: version for name, version in versions().items() if name != "python"},
    }
    name = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]
    return emendo_home() / "contexts" / f"{name}.json"
