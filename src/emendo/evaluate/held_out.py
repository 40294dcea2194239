"""Perplexity of the packaged text: what an edit costs everything that it was not about.

Of an edited model it is measured each time. Of an unedited one it is always the same, and on a CPU takes as long as a
small edit: it is measured once and kept under EMENDO_HOME.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emendo.errors import OutputError
from emendo.evaluate.perplexity import WINDOW, Perplexity, packaged_text, perplexity
from emendo.io import strict_json
from emendo.io.home import emendo_home
from emendo.io.versions import versions
from emendo.io.whole_file import write_json
from emendo.models import EditableModel
from emendo.progress import Watched

_FORMAT, _VERSION = "emendo.perplexity", 1

_MOST_CHARACTERS = 2**16
"""Of a file, which has some hundred: what is longer is none of ours."""


def packaged_perplexity(lm: EditableModel, *, progress: Watched = None) -> Perplexity:
    """Perplexity of the packaged text on the model as it stands.

    A remembered value that cannot be read is measured again, and one that cannot be kept is not: neither is an error.

    Args:
        lm: The model, edited or not.
        progress: Counts predicted tokens, where they are predicted.

    Raises:
        NumericalError: The model's logits are not finite.
    """
    text = packaged_text()
    if lm.holds_edits:
        return perplexity(lm, text, progress=progress)
    key = _key(lm, text)
    path = _path(key)
    found = _read(path, key)
    if found is None:
        found = perplexity(lm, text, progress=progress)
        document = {"format": _FORMAT, "version": _VERSION, "key": key, "perplexity": asdict(found)}
        with suppress(OutputError):
            write_json(path, document)
    return found


def _key(lm: EditableModel, text: str) -> dict[str, Any]:
    """Everything that the value depends on, libraries included: their kernels differ in the last digits."""
    libraries = {name: version for name, version in versions().items() if name != "python"}
    return {
        "weights_sha256": lm.weights_digest(),
        "config_sha256": lm.config_digest(),
        "tokenizer_sha256": lm.tokenizer_digest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "window": min(WINDOW, lm.max_length),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": lm.device.type,
        "versions": libraries,
    }


def _path(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return emendo_home() / "perplexity" / f"{digest}.json"


def _read(path: Path, key: dict[str, Any]) -> Perplexity | None:
    """What a file remembers for this key; None where there is none, or it holds anything else."""
    try:
        with path.open(encoding="utf-8") as stream:
            document = strict_json.loads(stream.read(_MOST_CHARACTERS))
        fixed = (document["format"], document["version"], document["key"])
        found = Perplexity(**document["perplexity"])
    except (OSError, ValueError, KeyError, TypeError):  # ValueError: no UTF-8 or no JSON
        return None
    return found if fixed == (_FORMAT, _VERSION, key) and _is_sound(found, key["window"]) else None


def _is_sound(found: Perplexity, window: int) -> bool:
    """Whether the numbers can be a perplexity at all, and belong together."""
    numbers = (found.value, found.nll)
    if not all(type(number) is float and math.isfinite(number) for number in numbers):
        return False
    if type(found.predicted_tokens) is not int or found.predicted_tokens < 1 or found.window != window:
        return False
    return 0 <= found.nll < 700 and math.isclose(found.value, math.exp(found.nll), rel_tol=1e-9)
