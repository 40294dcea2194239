"""What a trace does: how the subject is corrupted, what is restored, and what is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

from emendo.arguments import Count, Positive, Seed, check_fields, checked
from emendo.errors import InputError

Kind: TypeAlias = Literal["hidden", "mlp", "attention", "hidden-without-mlp", "hidden-without-attention"]
"""What is restored at one token.

``hidden``: the output of a block. ``mlp``, ``attention``: the output of that module in a window of layers.
``hidden-without-…``: the output of a block, while that module keeps its corrupted output at the same token (severed).
"""

Corruption: TypeAlias = Literal["noise", "uniform", "swap"]
Metric: TypeAlias = Literal["probability", "log-probability", "logit-difference"]
Positions: TypeAlias = Literal["all", "ends"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class TraceSettings:
    """Settings of causal tracing; the defaults are those of the paper.

    Args:
        kinds: What is restored, each giving one grid.
        corruption: ``"noise"``: normal noise on the embeddings of the subject's tokens; ``"uniform"``: uniform noise
            within ± the same scale; ``"swap"``: other subjects of as many tokens stand in its place.
        noise: Scale of the noise in standard deviations of the embeddings of known subjects.
        samples: Corrupted runs of each fact.
        metric: Of the answer's first token at the last position. ``"logit-difference"``: its logit less that of the
            token that the corrupted run prefers to it.
        window: Layers around the named one in which the output of an MLP or of attention is restored:
            ``[layer - window // 2, layer + (window + 1) // 2)``, clipped to the model.
        positions: ``"all"`` tokens, or only the ``"ends"``: the subject's last token and the text's last.
        seed: Of the noise; the draws are the same for every cell of a fact.
        lead: Text in front of every prompt. Without a BOS token a subject that opens the text stands on the attention
            sink, and noise there says little about the fact.

    Raises:
        InputError: A value is unknown or out of range.

    Source: ROME, arXiv 2202.05262, section 2 and appendix B; token swap and logit difference, arXiv 2309.16042.
    """

    kinds: tuple[Kind, ...] = ("hidden", "mlp", "attention")
    corruption: Corruption = "noise"
    noise: Positive = 3.0
    samples: Count = 10
    metric: Metric = "probability"
    window: Count = 10
    positions: Positions = "all"
    seed: Seed = 1
    lead: str = ""

    def __post_init__(self) -> None:
        check_fields(self, options=True)
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise InputError(f"kinds {list(self.kinds)}: expected at least one, each named once (--kind)")

    @checked
    def span(self, layer: int, n_layers: int) -> range:
        """Layers in which the cell of a layer restores the output of an MLP or of attention."""
        return range(max(0, layer - self.window // 2), min(n_layers, layer - (-self.window // 2)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "kinds": list(self.kinds)}


def module_of(kind: Kind) -> Literal["mlp", "attention"] | None:
    """The module whose output a kind replaces at its token; None for a whole block alone."""
    if kind == "hidden":
        return None
    return "mlp" if kind in ("mlp", "hidden-without-mlp") else "attention"


def is_hidden(kind: Kind) -> bool:
    """Whether a kind restores the output of a block."""
    return kind.startswith("hidden")
