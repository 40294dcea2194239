"""Perplexity on held-out text: what an edit costs everything that it was not about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch

from emendo.arguments import Count, checked
from emendo.errors import InputError, NumericalError
from emendo.evaluate.tokens import resolve_token_budget, token_scores
from emendo.models import EditableModel, pack_by_tokens
from emendo.progress import Watched, watching
from emendo.solve.numerics import pinned

WINDOW = 1024
"""Default window, or the model's length where that is shorter."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a text, with what makes it comparable.

    Attributes:
        value: exp(nll).
        nll: Mean negative log-likelihood per predicted token, in nats.
        predicted_tokens: Tokens that were predicted: the divisor.
        window: Most tokens the model saw at once. Values of different windows do not compare.
    """

    value: float
    nll: float
    predicted_tokens: int
    window: int


def packaged_text() -> str:
    """A short English passage that comes with Emendo, for perplexity where no data is at hand."""
    file = resources.files("emendo") / "data" / "perplexity_text.txt"
    return file.read_text(encoding="utf-8")


@checked
@pinned()
def perplexity(
    lm: EditableModel,
    text: str | Sequence[str],
    *,
    max_tokens: Count | None = None,
    window: Count | None = None,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> Perplexity:
    """Perplexity of a text or of several documents, in windows that do not overlap.

        exp( -(1/N) sum over windows, over predicted t of log p(x_t | x_<t in the window) )

    N counts predicted tokens only. Each window begins as the model expects a text to begin: after
    its BOS token, which then predicts the window's first token; a model without one predicts
    nothing at a window's first token. No window spans two documents.

    Args:
        lm: The model.
        text: One text, or documents.
        max_tokens: Read at most so many tokens of text, special tokens not counted; None reads all.
        window: Most tokens of a window, BOS included; None: 1024 or the model's length if shorter.
        token_budget: Most padded tokens of one batch; None: 512 on a CPU, 16,384 elsewhere.
            Changes speed and memory, not the value.
        progress: Counts predicted tokens.

    Returns:
        Perplexity per token of this model's tokenizer.

    Raises:
        InputError: A setting is out of range, or there is nothing to predict.
        NumericalError: The model's logits are not finite.

    Source: Jelinek et al. 1977, perplexity as the exponential of the per-token cross-entropy.
    """
    longest = lm.max_length
    window = min(WINDOW, longest) if window is None else window
    if not 2 <= window <= longest:
        raise InputError(f"window must lie between 2 and {longest}, found {window} (window=)")
    budget = resolve_token_budget(lm, token_budget)
    documents = [text] if isinstance(text, str) else list(text)
    windows = token_windows(lm, documents, window, max_tokens)
    if not windows:
        raise InputError(
            "there is nothing to predict: the text has fewer than two tokens within max_tokens="
            f"{max_tokens}; give a longer text (text=)"
        )
    progress = watching(progress)
    progress.start("perplexity", sum(len(ids) - 1 for ids in windows))
    totals = []
    with lm.isolated() as own:
        for group in pack_by_tokens([len(ids) for ids in windows], budget):
            rows = [windows[index] for index in group]
            totals.append(_log_likelihood(own, rows))
            progress.advance(sum(len(ids) - 1 for ids in rows))
    progress.finish()
    predicted = sum(len(ids) - 1 for ids in windows)
    nll = -math.fsum(totals) / predicted
    if not math.isfinite(nll):
        raise NumericalError(
            f"the mean nll over {predicted} tokens is {nll}; expected a finite number. The model's "
            "weights or activations overflow: roll an edit back, or load it in bfloat16 or float32"
        )
    return Perplexity(_exp(nll), nll, predicted, window)


def token_windows(lm: EditableModel, documents: Sequence[str], window: int, max_tokens: int | None) -> list[list[int]]:
    """Token windows of the documents; those too short to predict anything are left out."""
    prefix = _beginning(lm)
    step = window - len(prefix)
    if step < 1:
        raise InputError(
            f"window {window} holds nothing but the {len(prefix)} tokens that begin every text of "
            f"{lm.name!r}; expected more (window=)"
        )
    left = math.inf if max_tokens is None else max_tokens
    windows = []
    for document in documents:
        if left <= 0:
            break
        content = lm.encode_bare(document)
        content = content[: int(min(left, len(content)))]
        left -= len(content)
        pieces = [[*prefix, *content[i : i + step]] for i in range(0, len(content), step)]
        windows += [piece for piece in pieces if len(piece) > 1]
    return windows


def _beginning(lm: EditableModel) -> list[int]:
    """Special tokens that the model expects before a text; empty for most byte-level models."""
    probe = "a"
    ids = lm.encode(probe)
    return ids[: len(ids) - len(lm.encode_bare(probe))]


def _log_likelihood(lm: EditableModel, rows: Sequence[Sequence[int]]) -> float:
    """Sum over rows of the log-probabilities of all tokens but each row's first."""
    batch = lm.batch(rows)
    hidden = lm.final_hidden(batch)
    predicts = batch.attention_mask[:, 1:].to(hidden.device)
    picked = hidden[:, :-1][predicts]
    ids = batch.input_ids[:, 1:].to(hidden.device)[predicts]
    log_probs, _ = token_scores(lm, picked, torch.arange(len(ids), device=ids.device), ids)
    return float(log_probs.double().sum())


def _exp(nll: float) -> float:
    """exp(nll), infinite where it leaves the floats rather than an error."""
    return math.exp(nll) if nll < 700 else math.inf
