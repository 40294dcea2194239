"""The clean and the corrupted runs of a fact: everything that cells restore or start from, from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.errors import RequestError
from emendo.models import Capture, EditableModel
from emendo.models.wave import ordinary_run
from emendo.tracing.corrupt import Corrupted, corrupting
from emendo.tracing.facts import AlignedFact
from emendo.tracing.settings import Kind, Metric, module_of


@dataclass(frozen=True)
class Scorer:
    """What is read off the logits of the last position.

    Attributes:
        metric: What is read.
        answer: Token of the answer.
        rivals: Of every sample the token whose logit is taken off (``"logit-difference"``), ``[samples]``.
    """

    metric: Metric
    answer: int
    rivals: Int[Tensor, " samples"]

    def __call__(self, logits: Float[Tensor, "samples *branches vocab"]) -> Float[Tensor, "samples *branches"]:
        """Scores, in float64; the sum over the vocabulary is in the precision of the logits."""
        own = logits[..., self.answer]
        if self.metric == "logit-difference":
            index = self.rivals.to(logits.device).view(-1, *[1] * (logits.dim() - 1)).expand(*logits.shape[:-1], 1)
            return (own - logits.gather(-1, index)[..., 0]).double()
        score = own.double() - logits.logsumexp(dim=-1).double()
        return score.exp() if self.metric == "probability" else score


@dataclass(frozen=True)
class Runs:
    """A fact's clean run (row 0) and corrupted runs (rows 1 and on).

    Attributes:
        capture: Activations by layer, each ``[1 + samples, length, d_model]``.
        past: Keys and values of the corrupted runs by layer, each ``[samples, kv_heads, length, head_dim]``.
        scorer: The metric with its answer.
        high: Score of the clean run for every sample, ``[samples]``: they differ only in their rivals.
        low: Scores of the corrupted runs, ``[samples]``.
    """

    capture: Capture
    past: dict[int, tuple[Tensor, Tensor]]
    scorer: Scorer
    high: Float[Tensor, " samples"]
    low: Float[Tensor, " samples"]


def answered_token(lm: EditableModel, fact: AlignedFact, *, any_answer: bool = False) -> int:
    """The token that the model gives after a fact's prompt.

    Args:
        lm: The model.
        fact: The fact.
        any_answer: Accept that it is not the fact's answer.

    Raises:
        RequestError: It is not.
    """
    with torch.no_grad():
        said = int(lm.unembed(lm.final_hidden(lm.batch([list(fact.ids)]))[0, -1]).argmax())
    if fact.answer not in (None, said) and not any_answer:
        raise RequestError(
            f"the model does not answer {fact.fact.text!r}: it says {lm.decode([said])!r}, expected "
            f"{lm.decode([fact.answer or 0])!r}. Trace a fact that it knows, or this one as it is "
            "(--any-answer)"
        )
    return said


@torch.no_grad()
def run_both(lm: EditableModel, corrupted: Corrupted, answer: int, metric: Metric, kinds: Sequence[Kind]) -> Runs:
    """Run a fact once, clean and corrupted.

    Args:
        lm: The model.
        corrupted: Its inputs.
        answer: Token of the answer.
        metric: What is read off the last position.
        kinds: What will be restored: decides what is kept.
    """
    kept = {module_of(kind) for kind in kinds}
    with corrupting(lm, corrupted):
        capture, past, final = ordinary_run(lm, corrupted.ids, mlp_out="mlp" in kept, attention_out="attention" in kept)
    logits = lm.unembed(final[:, -1])
    preferred = logits[1:].clone()
    preferred[:, answer] = float("-inf")
    scorer = Scorer(metric, answer, preferred.argmax(dim=-1))
    high = scorer(logits[:1].expand(corrupted.samples, -1))
    past = {layer: (keys[1:], values[1:]) for layer, (keys, values) in past.items()}
    return Runs(capture, past, scorer, high, scorer(logits[1:]))
