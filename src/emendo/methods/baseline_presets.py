"""Published settings of baselines by model, each with its source.

Like those of methods they are for baselines of the catalog as they stand there (`resolve.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.methods.baseline_config import BaselineConfig
from emendo.models.known import GPT2_XL, GPT_J, KnownModel, Preset

if TYPE_CHECKING:
    from emendo.models import ModelAdapter

# Both models also have 25 steps and a learning rate of 5e-4 there, which are the baselines' own values.
_ROME = "ROME's settings for FT (hparams/FT), as EasyEdit has them"

BASELINE_PRESETS: dict[str, dict[KnownModel, Preset]] = {
    "ft-l": {
        GPT2_XL: Preset((0,), _ROME, {"fine_tune.max_change": 5e-4}),
        GPT_J: Preset((0,), _ROME, {"fine_tune.max_change": 5e-5}),
    },
    "ft": {
        GPT2_XL: Preset((1,), _ROME),
        GPT_J: Preset((21,), _ROME),
    },
}

UNTUNED: dict[str, dict[str, str]] = {
    "ft-l": {"fine_tune.max_change": "ROME's bound for GPT2-XL; not tuned for this model"},
}
"""Values of baselines that were chosen for one model, with their origin on any other."""


def baseline_preset(config: BaselineConfig, adapter: ModelAdapter) -> tuple[Preset, str] | None:
    """The preset of a baseline for a loaded model, with its origin in words; None where there is none."""
    for model, preset in BASELINE_PRESETS.get(config.name, {}).items():
        if model.matches(adapter):
            return preset, f"preset for models shaped like {model.name}: {preset.source}"
    return None
