"""The settings of methods, one section for each axis of the engine, and what settings of baselines have in common.

`config.py` puts them together; types and ranges are annotations, which `checks.py` judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from emendo.methods.checks import Count, NotNegative, Part, Positive, Section, Share, Steps, Within

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView
    from emendo.requests import EditRecord

Site = Literal["resid_post", "mlp_out"]
"""The vector that a value is searched for: the block's output or the MLP's."""

Shared = Literal["key", "request", "subject"]
"""Which requests have one value: those with one key, none, or those on one subject."""


@dataclass(frozen=True)
class ContextSettings(Section):
    """Which contexts prompts are put in; schemes as in `emendo.editing.contexts.prefix_contexts`."""

    section: ClassVar[str] = "contexts"

    scheme: Literal["memit", "rome", "fixed", "none", "chat", "chat+raw"] = "memit"


@dataclass(frozen=True)
class KeySettings(Section):
    """Which keys an edit is stored under.

    Args:
        average: Weights of the contexts in the mean key: ``"two_level"`` gives the plain prompt one half and shares
            the other half among the sampled contexts, ``"flat"`` weighs all alike.
        constraint: At which key the edit must hold: the ``"mean"`` key, or the ``"plain"`` prompt's own (the mixed
            form of the original ROME code).
        residual: Where the present value is measured: at the ``"plain"`` prompt, or as the ``"mean"`` over contexts
            with the weights of the key (which keeps ``(W + Δ) k = v*`` for the mean key).

    Source: public code of ROME and MEMIT for the averages; r-ROME (arXiv 2403.07175) for one key throughout.
    """

    section: ClassVar[str] = "keys"

    average: Literal["two_level", "flat"] = "two_level"
    constraint: Literal["mean", "plain"] = "mean"
    residual: Literal["plain", "mean"] = "plain"


@dataclass(frozen=True)
class TargetSettings(Section):
    """How a target value is searched.

    Args:
        site: Which vector δ is measured against and added to: the whole block's output (``"resid_post"``) or the
            MLP's (``"mlp_out"``). In most families both enter the residual stream at the same place; where the
            MLP's output is normed first, only ``"mlp_out"`` can be written by an edit.
        steps: Most loss evaluations; one fewer updates.
        learning_rate: Of Adam.
        max_norm_ratio: ‖δ‖ is kept within this multiple of ‖init‖ (clamp_norm_factor of the public code).
        kl_weight: Weight of the divergence on the subject's own prompt (kl_factor).
        weight_decay: Weight of ‖δ‖/‖init‖² (v_weight_decay).
        loss_threshold: A request is finished when its total loss is below this.
        argmax_steps: A request is finished when all its target tokens have been the argmax in all contexts for
            this many further steps in a row, 0 being the first time that they are; None turns the rule off.
        argmax_nll_weight: Weight of a request's NLL in the step after one in which all its target tokens were the
            argmax (PMET: 0.1), so that the search turns to the divergence.
        kl_threshold: A request whose target tokens are all the argmax is finished when its divergence, times
            `kl_weight`, is at most this; 0 turns the rule off.
        joint_attention: Search a second vector, added to the attention's output, beside the one that is written; it
            takes the part of the change that attention could make (PMET).
        end_of_text: The model's end-of-text token is the last token of every target, so that generation stops there.
        word_end_weight: Weight of −log p(the word ends) after a target that ends in a word or number: what follows must
            begin with a space or punctuation or end the text, so that "Rabat" does not run on to "Rabatit". Search
            and stop by argmax then ask for that too; 0 leaves it out.
        word_end_enough: Probability of the word's end with which that term is content: it is then 0, and a target that
            does not run on is searched as without it. With 1 it never is.
        norm_anchor: Rescale v* to the norm that the unedited model has there (NAS).
        shared: Which requests share one v*, searched for all their targets: those that have one key, since their
            prompts are the same up to the subject's last token (``"key"``), also with facts that earlier edits wrote
            under it (n facts get n times `steps` and `argmax_steps` and √n times `max_norm_ratio`); none
            (``"request"``, as most papers have it: equality then refuses equal keys, and least squares writes each in
            part); or all on one subject, wherever it stands (``"subject"``).
        batch_size: Requests searched together; a matter of memory and speed only.
        precision: Of the matrix products: ``"float32"`` leaves them to the model's dtype, ``"bfloat16"`` runs them
            in bfloat16 with float32 norms, softmax and residual stream (autocast). Models whose weights are in half
            precision multiply in that, whatever this says.

    Source: MEMIT (arXiv 2210.07229) and its public code; argmax rule: MPES of ENCORE (arXiv 2502.01636); joint search
        and its two rules: PMET (arXiv 2308.08742); norm anchor: NAS (arXiv 2602.02543); shared: MEMIT-Merge
        (arXiv 2502.07322).
    """

    section: ClassVar[str] = "target"

    site: Site = "resid_post"
    steps: Count = 25
    learning_rate: Positive = 0.5
    max_norm_ratio: Positive = 0.75
    kl_weight: NotNegative = 0.0625
    weight_decay: NotNegative = 0.5
    loss_threshold: NotNegative = 0.05
    argmax_steps: Steps | None = None
    argmax_nll_weight: Part = 1.0
    kl_threshold: NotNegative = 0.0
    joint_attention: bool = False
    end_of_text: bool = False
    word_end_weight: NotNegative = 0.0
    word_end_enough: Share = 1.0
    norm_anchor: bool = False
    shared: Shared = "key"
    batch_size: Count = 24
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class MomentSettings(Section):
    """Where the second moment of preserved keys comes from.

    Args:
        source: ``"self"`` (text sampled from the model), ``"kinds"`` (sampled after openings of many languages and
            forms), a ``.txt`` or ``.jsonl`` file, or a Hugging Face data set as ``"hf:ID"`` or ``"hf:ID:CONFIG"``; or a
            mixture such as ``"0.7*self+0.3*kinds"``.
        multiple: Tokens as a multiple of d_in.
        exclude_first: Leave out the first position of every sequence, where many models keep an outlier.
    """

    section: ClassVar[str] = "moments"

    source: str = "self"
    multiple: Positive = 10
    exclude_first: bool = False


@dataclass(frozen=True)
class Memorization(Section):
    """How firmly an edit must hold.

    Args:
        s: 0 for equality, above 0 for least squares with that weight on the dual diagonal.
        equality_alone: A single request is memorized with equality whatever `s` is.
        share: What a key alone is to receive of its residual, in the mean over keys and layers, by least squares: λ is
            chosen for it when an edit is planned, and `preservation.weight` and `ridge` only say their ratio (rule:
            `emendo.solve.strength`). None: they are λ as they stand.
    """

    section: ClassVar[str] = "memorization"

    s: NotNegative = 0.0
    equality_alone: bool = False
    share: Within | None = None

    def strength(self, n: int) -> float:
        """The s that `n` requests are solved with."""
        return 0.0 if n == 1 and self.equality_alone else self.s


@dataclass(frozen=True)
class HistorySettings(Section):
    """What earlier edits in the model count in the preservation metric: H = weight · Σ kᵀk over their keys.

    Args:
        weight: 0 for none. With ``1/s`` (1 for MEMIT) an earlier edit counts exactly like one of the present batch.

    Source: sequential MEMIT and the cache of AlphaEdit (arXiv 2410.02355); ENCORE (arXiv 2502.01636).
    """

    section: ClassVar[str] = "history"

    weight: NotNegative = 0.0


@dataclass(frozen=True)
class PostStep(Section):
    """What is done to the finished update of each layer.

    Args:
        kind: ``"none"``; ``"rect"`` keeps the entries that change their weight most, relatively; ``"prune"`` damps
            singular values of the total update (earlier ones included) above the largest of W₀; ``"cap"`` scales the
            update to a largest Frobenius norm.
        keep: Share of the entries that ``"rect"`` keeps.
        log_base: Of the logarithm that ``"prune"`` damps with.
        max_ratio: Largest ‖ΔW‖/‖W‖ that ``"cap"`` leaves.

    Source: RECT (arXiv 2401.04700), PRUNE (arXiv 2405.16821).
    """

    section: ClassVar[str] = "post"

    kind: Literal["none", "rect", "prune", "cap"] = "none"
    keep: Share = 0.4
    log_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = math.e
    max_ratio: Positive = 0.1


@dataclass(frozen=True)
class BaselineSettings(Section):
    """A baseline's own settings. A new baseline is a subclass; what differs between baselines is in it.

    Attributes:
        trainer: ``"module:function"`` that makes the update, imported when it runs: from the isolated model, the
            requests, these settings, the layers, the seed and the progress to updates and a `TrainingTrace`. Empty for
            a baseline that changes no weights.
    """

    trainer: ClassVar[str] = ""

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """The layers that are trained where nobody names any, ascending, and the reason in words."""
        raise NotImplementedError

    def evaluation_prompts(self, records: Sequence[EditRecord]) -> list[EditRecord]:
        """The records as the model is asked them once the edit is in."""
        return list(records)


@dataclass(frozen=True)
class TrainingSettings(BaselineSettings):
    """How weights are trained on the target tokens of the plain prompts.

    Args:
        steps: Most passes over all requests.
        learning_rate: Of Adam.
        loss_threshold: Training ends after a pass whose mean loss is below this, in nats; a mini-batch below it is
            not stepped on.
        batch_size: Requests of one step.
    """

    steps: Count = 25
    learning_rate: Positive = 5e-4
    loss_threshold: NotNegative = 1e-2
    batch_size: Count = 128
