"""Sizes that the files of a model declare, compared with the files before anything is allocated for them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

MOST_LAYERS = 1000
"""Blocks of one model; the deepest in use have fewer than 200."""

MOST_LABELS = 100_000
"""Names of classes: transformers makes one for each, of a language model too."""

MOST_TOKENS = 2**22
"""Ids of one vocabulary; the largest in use have 262,144. Readers keep a list as long as the largest id."""

_LAYERS = re.compile(r"(?:layers?|depth|blocks?)$")
_LONG_NUMBER = re.compile(r"\d{7}")

GROWTH, GGUF_GROWTH = 4, 32
"""Bytes in memory for each byte of the files, at most: float32 from 8 bits, and from a GGUF file's single bit."""

_BUFFERS = 2**28
"""Bytes that a small model may take beside: masks and tables of positions."""


def check_config_numbers(config: Any) -> None:
    """Refuse a configuration whose counts would fill the memory while it is read.

    Args:
        config: Of ``config.json``, or a part of it.

    Raises:
        ValueError: Names the setting.
    """
    if isinstance(config, list):
        for part in config:
            check_config_numbers(part)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        check_config_numbers(value)
        most = MOST_LABELS if key == "num_labels" else MOST_LAYERS if _LAYERS.search(key) else None
        if most is not None and isinstance(value, (int, float)) and value > most:
            raise ValueError(f"{key} is {str(value)[:40]}, expected at most {most:,}")


def check_token_ids(text: str) -> None:
    """Refuse the vocabulary of a ``tokenizer.json`` with an id that no model has a row for.

    Args:
        text: Of the file.

    Raises:
        ValueError: Not JSON, or names the token.
    """
    if not _LONG_NUMBER.search(text):
        return
    value = json.loads(text)
    model = value.get("model") if isinstance(value, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    pairs = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    added = value.get("added_tokens") if isinstance(value, dict) else None
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict):
            pairs.append((str(entry.get("content")), entry.get("id")))
    for token, number in pairs:
        if isinstance(number, (int, float)) and number >= MOST_TOKENS:
            raise ValueError(
                f"the token {token[:40]!r} has the id {str(number)[:40]}, expected one below {MOST_TOKENS:,}"
            )


def check_model_size(auto: Any, config: PretrainedConfig, weights: Sequence[Path], growth: int = GROWTH) -> None:
    """Refuse a configuration that describes a far larger model than its files hold.

    The model is built without memory (device ``meta``), and what it would take is counted.

    Args:
        auto: The class that loads it, such as `AutoModelForCausalLM`.
        config: Its configuration.
        weights: The files.
        growth: Bytes in memory for each byte of them, at most.

    Raises:
        ValueError: Says both sizes.
    """
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config), trust_remote_code=False)
    parts = {id(part): part for part in (*model.parameters(), *model.buffers())}
    needed = sum(part.numel() * part.element_size() for part in parts.values())
    found = sum(path.stat().st_size for path in weights)
    if needed > growth * found + _BUFFERS:
        largest = max(model.named_parameters(), key=lambda pair: pair[1].numel())
        raise ValueError(
            f"config.json describes a model of {needed:,} bytes ({largest[0]} alone is "
            f"{' × '.join(f'{size:,}' for size in largest[1].shape)}), and its weights have {found:,}; expected the "
            "configuration of this checkpoint"
        )
