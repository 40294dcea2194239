"""The distribution level: how far an edit moves what the model says next, where it should not move at all.

Log-probabilities over a vocabulary are large (200 kB a prompt for 50,000 tokens); final hidden states are small and say
the same, as the unembedding is no part of an edit. So hidden states are kept, and log-probabilities are made a few rows
at a time when two models are compared. Should the unembedding have changed meanwhile, that is noticed and refused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.arguments import Confidence, Count, Resamples, Seed, checked
from emendo.errors import InputError, NumericalError
from emendo.evaluate.bootstrap import Interval, bootstrap_interval
from emendo.evaluate.perplexity import WINDOW, token_windows
from emendo.evaluate.proportion import wilson_interval
from emendo.evaluate.tokens import hidden_in_trees, logit_chunks, tree_budget
from emendo.models import EditableModel, pack_by_tokens
from emendo.progress import Watched, watching
from emendo.requests import Prompt, prompt_text
from emendo.solve.numerics import pinned

UNEMBEDDING_TOLERANCE = 1e-4
"""Most that a stored log-normaliser may differ from one made again, relative to it or to 1 nat."""

SHIFT_BYTES = 16 * 2**20
"""Most bytes of float32 logits read at once; a comparison holds about eight times as much for a moment."""


@dataclass(frozen=True)
class NextTokenLogProbs:
    """What a model says next at many places.

    Attributes:
        places: What each place is: its prompt, or a position of a text.
        hidden: Final hidden states, in the model's dtype on the CPU, ``[places, d_model]``.
        log_normalizer: log Σ exp(logits) of each place when it was made, ``[places]``.
        top: Most likely token of each place, ``[places]``.
        lm: Gives the unembedding.
    """

    places: tuple[str, ...]
    hidden: Float[Tensor, "places d_model"]
    log_normalizer: Float[Tensor, " places"]
    top: Int[Tensor, " places"]
    lm: EditableModel

    @classmethod
    @checked
    def of(cls, lm: EditableModel, places: Sequence[str], hidden: Float[Tensor, "places d_model"]) -> NextTokenLogProbs:
        """Keep hidden states, and what tells later whether the unembedding is still the same."""
        normalizers, top = [], []
        for start, logits in logit_chunks(lm, hidden, SHIFT_BYTES):
            normalizers.append(logits.double().logsumexp(dim=-1).cpu())
            top.append(logits.argmax(dim=-1).cpu())
            if not normalizers[-1].isfinite().all():
                bad = int(torch.nonzero(~normalizers[-1].isfinite())[0]) + start
                raise NumericalError(
                    f"the model's logits after {places[bad]!r} are not finite; its weights or activations overflow: "
                    "roll an edit back, or load it in bfloat16 or float32 (--dtype)"
                )
        return cls(tuple(places), hidden.cpu(), torch.cat(normalizers), torch.cat(top), lm)

    def chunks(self) -> Iterator[tuple[int, Float[Tensor, "some vocab"]]]:
        """The first place and the log-probabilities (float64, nats) of consecutive places, in bounded memory.

        Raises:
            InputError: The unembedding is no longer what it was.
        """
        for start, logits in logit_chunks(self.lm, self.hidden.to(self.lm.device), SHIFT_BYTES):
            logits = logits.double()
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            stored = self.log_normalizer[start : start + len(logits)].to(normalizer)
            error = float(((normalizer[:, 0] - stored).abs() / stored.abs().clamp_min(1)).max())
            if error > UNEMBEDDING_TOLERANCE:
                raise InputError(
                    f"the unembedding of {self.lm.name!r} has changed since these distributions were taken, so "
                    "they cannot be read any more; expected an edit of other weights. Give a second wrapped model that "
                    "holds the base model (next_token_log_probs(base, prompts))"
                )
            yield start, logits - normalizer


@checked
@pinned()
def next_token_log_probs(
    lm: EditableModel,
    prompts: Sequence[Prompt],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> NextTokenLogProbs:
    """What the model says next after each prompt, to be compared with another model later.

    Args:
        lm: The model.
        prompts: At least one text or conversation; beginnings in common are computed once.
        token_budget: Most distinct tokens run at once, as in `score_tokens`. Changes speed and memory.
        progress: Counts prompts.

    Raises:
        InputError: There is no prompt, or one is longer than the model's positions.
        NumericalError: The model's logits are not finite.
        SelfCheckError: A tree disagrees with the model's own forward pass.
    """
    if not prompts:
        raise InputError("there is no prompt to compare distributions on; expected at least one (prompts=)")
    rows = [tuple(lm.encode_prompt(prompt)) for prompt in prompts]
    if long := [i for i, row in enumerate(rows) if len(row) > lm.max_length]:
        raise InputError(
            f"{len(long)} of {len(rows)} prompts do not fit {lm.name!r}, which has positions for "
            f"{lm.max_length} tokens; shorten or drop them, such as {prompt_text(prompts[long[0]])[:60]!r}..."
        )
    budget = tree_budget(lm, token_budget)
    progress = watching(progress)
    progress.start("next tokens", len(rows))
    last: Tensor | None = None
    for group, forest, hidden in hidden_in_trees(lm, rows, budget):
        last = hidden.new_empty(len(rows), hidden.shape[-1]) if last is None else last
        last[group] = hidden[[path[-1] for path in forest.paths]]
        progress.advance(len(group))
    progress.finish()
    assert last is not None
    return NextTokenLogProbs.of(lm, [prompt_text(prompt) for prompt in prompts], last)


@checked
@pinned()
def text_log_probs(
    lm: EditableModel,
    text: str | Sequence[str],
    *,
    max_tokens: Count = 2000,
    every: Count = 1,
    window: Count | None = None,
    progress: Watched = None,
) -> NextTokenLogProbs:
    """What the model says next at positions of held-out text, in windows as `perplexity` makes them.

    Args:
        lm: The model.
        text: One text, or documents.
        max_tokens: Read at most so many tokens of text.
        every: Keep every so manieth position of a window, from the first on.
        window: Most tokens of a window; None: 1024 or the model's length if shorter.
        progress: Counts tokens.

    Raises:
        InputError: A setting is out of range, or there is no text.
        NumericalError: The model's logits are not finite.
    """
    window = min(WINDOW, lm.max_length) if window is None else window
    windows = token_windows(lm, [text] if isinstance(text, str) else text, window, max_tokens)
    if not windows:
        raise InputError("there is no position to compare distributions at; give a longer text (text=)")
    progress = watching(progress)
    progress.start("next tokens", sum(map(len, windows)))
    starts = list(itertools.accumulate((math.ceil(len(ids) / every) for ids in windows), initial=0))
    kept: Tensor | None = None
    with lm.isolated() as own:
        for group in pack_by_tokens([len(ids) for ids in windows], window):
            hidden = own.final_hidden(own.batch([windows[index] for index in group]))
            # Copied: a view would keep the whole batch in memory for every so manieth position of it.
            kept = hidden.new_empty(starts[-1], hidden.shape[-1]) if kept is None else kept
            for place, index in enumerate(group):
                kept[starts[index] : starts[index + 1]] = hidden[place, : len(windows[index]) : every]
            progress.advance(sum(len(windows[index]) for index in group))
    progress.finish()
    assert kept is not None
    places = [
        f"window {number} token {position}"
        for number, ids in enumerate(windows)
        for position in range(0, len(ids), every)
    ]
    return NextTokenLogProbs.of(lm, places, kept)


@dataclass(frozen=True)
class Drift:
    """How far next-token distributions moved.

    Attributes:
        places: What each place is.
        kl: KL(base ‖ edited) of each place, in nats.
        flipped: Whether the most likely token of each place is another one.
        mean: Mean KL.
        mean_interval: Bootstrap interval of it over places.
        p99: 99th percentile of KL (linear interpolation).
        largest: Largest KL.
        flips: Share of places whose most likely token is another one.
        flips_interval: Wilson interval of it. Places are taken as independent, which positions of one text are not:
            there the true interval is wider.
        confidence: Of both intervals.
    """

    places: tuple[str, ...]
    kl: tuple[float, ...]
    flipped: tuple[bool, ...]
    mean: float
    mean_interval: Interval | None
    p99: float
    largest: float
    flips: float
    flips_interval: Interval | None
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"n": len(self.places), **vars(self)}


@checked
@pinned()
def measure_drift(
    before: NextTokenLogProbs,
    after: NextTokenLogProbs,
    *,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> Drift:
    """KL(base ‖ edited) of next-token distributions, and how often the most likely token changed.

        KL_i = Σ_v p_before(v | x_i) (log p_before(v | x_i) − log p_after(v | x_i))

    Args:
        before: Of the base model.
        after: Of the edited model, at the same places.
        confidence: Of the intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: The places or the vocabularies differ, or an unembedding has changed since.

    Source: Kullback and Leibler 1951; De Cao et al. 2021 (KnowledgeEditor, arXiv 2104.08164), as the constraint that an
    edit keeps other predictions.
    """
    if before.places != after.places:
        raise InputError(
            f"a shift compares the same places, found {len(before.places)} before and {len(after.places)} after"
            + ("" if len(before.places) != len(after.places) else " of other prompts")
        )
    if before.lm.vocab_size != after.lm.vocab_size:
        raise InputError(
            f"a shift compares one vocabulary, found {before.lm.vocab_size} and {after.lm.vocab_size} tokens"
        )
    kl: list[float] = []
    for (_, p), (_, q) in zip(before.chunks(), after.chunks(), strict=True):
        q = q.to(p.device)
        # A token that the base never says counts 0, whatever the other model makes of it. The sum cannot be negative;
        # rounding can make that of equal distributions so.
        terms = torch.where(p == -math.inf, 0.0, p.exp() * (p - q))
        kl += terms.sum(dim=-1).clamp_min(0).tolist()
    flipped = (before.top != after.top).tolist()
    return Drift(
        places=before.places,
        kl=tuple(kl),
        flipped=tuple(flipped),
        mean=math.fsum(kl) / len(kl),
        mean_interval=bootstrap_interval(kl, confidence=confidence, n_resamples=n_resamples, seed=seed),
        p99=float(np.quantile(kl, 0.99)),
        largest=max(kl),
        flips=sum(flipped) / len(flipped),
        flips_interval=wilson_interval(sum(flipped), len(flipped), confidence=confidence),
        confidence=confidence,
    )
