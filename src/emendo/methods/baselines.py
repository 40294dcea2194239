"""The named baselines, each with its paper and where it differs from it, and the layers that they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emendo.errors import MethodError
from emendo.methods.baseline_config import BaselineConfig, FineTuneSettings, InContextSettings, LoraSettings
from emendo.suggest import look_up

if TYPE_CHECKING:
    from emendo.models import ModelAdapter

_TEACHER_FORCED = (
    "every target token is scored after the tokens before it; the public code scores all of them at the prompt's last "
    "token (no difference for targets of one token)"
)
_NO_BIAS = "the bias of the down-projection is left alone; the public code trains it too, where there is one"

_ALL = (
    BaselineConfig(
        name="ft-l",
        source="FT-L of ROME, arXiv 2202.05262 appendix E.1, after arXiv 2012.00363: one layer, every entry's change "
        "bounded",
        own=FineTuneSettings(),
        deviations=(_TEACHER_FORCED, _NO_BIAS),
    ),
    BaselineConfig(
        name="ft",
        source="FT of ROME, arXiv 2202.05262 appendix E.1: one layer, unbounded, with early stopping",
        own=FineTuneSettings(max_change=None),
        deviations=(_TEACHER_FORCED, _NO_BIAS),
    ),
    BaselineConfig(
        name="lora",
        source="LoRA, arXiv 2106.09685, trained with the peft package",
        own=LoraSettings(),
        deviations=("on the MLP down-projections; the paper adapts attention projections",),
    ),
    BaselineConfig(
        name="in-context",
        source="the zero-shot form of IKE, arXiv 2305.12740: the new fact in front of every prompt",
        own=InContextSettings(),
        deviations=(
            "no demonstrations; IKE adds up to 32, retrieved by similarity to the prompt",
            "the lead is 'Imagine that', where IKE writes 'New Fact:' and 'Prompt:' "
            "(--set 'in_context.template=New Fact: {fact}\\nPrompt: {probe}' with a real line break)",
        ),
    ),
)

BASELINES: dict[str, BaselineConfig] = {baseline.name: baseline for baseline in _ALL}
"""Every named baseline."""


def baseline_named(name: str) -> BaselineConfig:
    """The named baseline, whatever the case of its letters.

    Raises:
        MethodError: Unknown name, with the nearest known one.
    """
    return look_up("baseline", name, BASELINES, "--method")


def baseline_layers(
    adapter: ModelAdapter, config: BaselineConfig, layers: Sequence[int] | None = None
) -> tuple[tuple[int, ...], str]:
    """The layers that a baseline trains, ascending, and where the choice comes from.

    Those given, else the config's own. Without either fine-tuning takes the first layer, LoRA every layer, and
    in-context none.

    Raises:
        LayerError: A layer that the model does not have.
        MethodError: Layers for a baseline that changes no weights.

    Source: layer 0 is that of FT-L on GPT2-XL and GPT-J in ROME's public code (arXiv 2202.05262).
    """
    wanted = layers if layers is not None else config.layers or None
    if isinstance(config.own, InContextSettings):
        if wanted is not None:
            raise MethodError(f"{config.name} changes no weights, found layers {list(wanted)}; leave --layers out")
        return (), f"{config.name} changes no weights"
    if wanted is not None:
        origin = f"baseline {config.name}" if layers is None else "given (--layers)"
        return tuple(adapter.check_layers(wanted)), origin
    if isinstance(config.own, LoraSettings):
        return tuple(range(adapter.n_layers)), "every layer"
    return (0,), "the first layer, as FT-L of ROME on GPT2-XL and GPT-J; not tuned for this model"
