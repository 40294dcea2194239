"""A method: MEMIT with the distribution of this package."""

from __future__ import annotations

from dataclasses import replace

from emendo import METHODS

MEMIT_DECAY = replace(
    METHODS["memit"],
    name="memit-decay",
    source="an example: MEMIT whose layers take half of what is missing each",
    distribution="decay",
    presets="memit",
)
