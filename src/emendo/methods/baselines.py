"""The baselines: their settings, their papers, and where each differs from its paper.

A new baseline is a settings class and an entry here, and the module that its `trainer` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from emendo.methods.checks import Count, Positive
from emendo.methods.config import BaselineConfig
from emendo.methods.in_context import InContextSettings
from emendo.methods.settings import TrainingSettings

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView


@dataclass(frozen=True)
class FineTuneSettings(TrainingSettings):
    """Fine-tuning of whole down-projections, with a bound on every entry's change.

    Args:
        max_change: Largest |ΔW| of any entry (norm_constraint of the public code); None, in text ``none``, leaves the
            weights free.
    """

    section: ClassVar[str] = "fine_tune"
    trainer: ClassVar[str] = "emendo.editing.baselines.fine_tune:fine_tune"

    max_change: Positive | None = 5e-4

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """The first layer.

        Source: that of FT-L on GPT2-XL and GPT-J in ROME's public code (arXiv 2202.05262).
        """
        return (0,), "the first layer, as FT-L of ROME on GPT2-XL and GPT-J; not tuned for this model"


@dataclass(frozen=True)
class LoraSettings(TrainingSettings):
    """Low-rank adapters on the down-projections.

    Args:
        rank: Rows of A.
        alpha: ΔW is ``alpha / rank · B A``.
    """

    section: ClassVar[str] = "lora"
    trainer: ClassVar[str] = "emendo.editing.baselines.lora:fit_lora"

    steps: Count = 50
    learning_rate: Positive = 1e-3
    batch_size: Count = 32
    rank: Count = 8
    alpha: Positive = 16.0

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """Every layer."""
        return tuple(range(lm.n_layers)), "every layer"


_TEACHER_FORCED = (
    "every target token is scored after the tokens before it; the public code scores all of them at the prompt's last "
    "token (no difference for targets of one token)"
)
_NO_BIAS = "the bias of the down-projection is left alone; the public code trains it too, if there is one"

BUILT_IN = (
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
"""Every baseline of Emendo."""
