"""How far an edit moves what the model makes of every token of given texts.

`measure_drift` compares one place of each prompt, where a single prompt close to the edit can weigh as much as all
others. A text has hundreds of places: the mean over them says whether a kind of text still works, and its perplexity
says whether it works worse or only differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emendo.arguments import Count, checked
from emendo.errors import InputError, NumericalError
from emendo.evaluate.drift import SHIFT_BYTES, UNEMBEDDING_TOLERANCE
from emendo.evaluate.tokens import Ids, hidden_in_trees, logit_chunks, tree_budget
from emendo.models import EditableModel
from emendo.models.tree import common_length
from emendo.progress import Watched, watching
from emendo.solve.numerics import pinned


@dataclass(frozen=True)
class TextTokens:
    """A state of the model at every token of some texts; two of them make a `TokenShift`.

    Attributes:
        texts: Token ids of each text.
        places: (text, position) of every predicted token; a beginning that several texts share is there once.
        hidden: Final hidden states that predict them, on the CPU, ``[places, d_model]``.
        first: log Σ exp(logits) of the first place: tells whether the unembedding is still what it was.
        lm: Gives the unembedding.
    """

    texts: tuple[Ids, ...]
    places: tuple[tuple[int, int], ...]
    hidden: Float[Tensor, "places d_model"]
    first: float
    lm: EditableModel


@dataclass(frozen=True)
class TokenShift:
    """Every predicted token of some texts, before an edit and after it.

    Attributes:
        places: (text, position) of each token.
        nll_before: Negative log-likelihood of each token before, in nats.
        nll_after: The same after.
        kl: KL(before ‖ after) of the distribution at each place, in nats.
        confidence: Probability before of the most likely token of each place.
        top_before: Most likely token of each place before.
        top_after: Most likely token of each place after.
    """

    places: tuple[tuple[int, int], ...]
    nll_before: Float[Tensor, " places"]
    nll_after: Float[Tensor, " places"]
    kl: Float[Tensor, " places"]
    confidence: Float[Tensor, " places"]
    top_before: Int[Tensor, " places"]
    top_after: Int[Tensor, " places"]

    @property
    def flipped(self) -> Bool[Tensor, " places"]:
        """Whether the most likely token of each place is another one."""
        return self.top_before != self.top_after


@checked
@pinned()
def text_tokens(
    lm: EditableModel,
    texts: Sequence[Sequence[int]],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> TextTokens:
    """Read texts and keep what the model predicts at every token, to be compared with another state later.

    Args:
        lm: The model.
        texts: Token ids of each; what is longer than the model has positions for is cut there. A text of one token
            predicts nothing.
        token_budget: Most distinct tokens run at once, as in `score_tokens`. Changes speed and memory.
        progress: Counts texts.

    Raises:
        InputError: No text has two tokens.
        NumericalError: A hidden state is not finite.
        SelfCheckError: A tree disagrees with the model's own forward pass.
    """
    rows = tuple(tuple(ids[: lm.max_length]) for ids in texts)
    places = _distinct_places(rows)
    if not places:
        raise InputError(f"there is no token to predict in {len(rows)} text(s); expected one of at least two tokens")
    progress = watching(progress)
    progress.start("texts", len(rows))
    number = {place: row for row, place in enumerate(places)}
    fed = [index for index, row in enumerate(rows) if len(row) > 1]
    kept: Tensor | None = None
    for group, forest, hidden in hidden_in_trees(
        lm, [rows[index][:-1] for index in fed], tree_budget(lm, token_budget)
    ):
        kept = torch.empty(len(places), hidden.shape[-1], dtype=hidden.dtype) if kept is None else kept
        found = [
            (number[fed[index], position], node)
            for index, path in zip(group, forest.paths, strict=True)
            for position, node in enumerate(path, start=1)
            if (fed[index], position) in number
        ]
        kept[[row for row, _ in found]] = hidden[[node for _, node in found]].cpu()
        progress.advance(len(group))
    progress.finish()
    assert kept is not None
    if not kept.isfinite().all():
        raise NumericalError(
            "the model's hidden states on texts are not finite; its weights or activations overflow: roll an edit "
            "back, or load it in bfloat16 or float32 (--dtype)"
        )
    return TextTokens(rows, places, kept, _first_normalizer(lm, kept), lm)


@checked
@pinned()
def token_shift(before: TextTokens, after: TextTokens) -> TokenShift:
    """Compare two states of one model at every token of the same texts.

        KL_i = Σ_v p_before(v | x_i) (log p_before(v | x_i) − log p_after(v | x_i))

    Raises:
        InputError: The texts differ, or the unembedding has changed since.
        NumericalError: Log-probabilities are not finite.

    Source: Kullback and Leibler 1951; perplexity as Jelinek et al. 1977.
    """
    if before.texts != after.texts:
        raise InputError(f"a shift compares the same texts, found {len(before.texts)} and {len(after.texts)}")
    for state in (before, after):
        now = _first_normalizer(state.lm, state.hidden)
        if not abs(now - state.first) <= UNEMBEDDING_TOLERANCE * max(1.0, abs(state.first)):
            raise InputError(
                f"the unembedding of {state.lm.name!r} has changed since its texts were read, so that they cannot "
                "be compared any more; expected an edit of other weights"
            )
    tokens = torch.tensor([before.texts[text][position] for text, position in before.places])
    parts = [
        _compared(p, q.to(p.device), tokens[start : start + len(p)].to(p.device))
        for (start, p), (_, q) in zip(_logits(before), _logits(after), strict=True)
    ]
    nll_before, nll_after, kl, *rest = (torch.cat(columns) for columns in zip(*parts, strict=True))
    if not all(column.isfinite().all() for column in (nll_before, nll_after, kl)):
        raise NumericalError(
            "log-probabilities on texts are not finite; the model's weights or activations overflow: roll an edit "
            "back, or load it in bfloat16 or float32 (--dtype)"
        )
    return TokenShift(before.places, nll_before, nll_after, kl, *rest)


def _distinct_places(rows: Sequence[Ids]) -> tuple[tuple[int, int], ...]:
    """(text, position) of every token that follows another; what a text shares with an earlier one is left out."""
    places = []
    for index, row in enumerate(rows):
        shared = max((common_length(row, earlier) for earlier in rows[:index]), default=0)
        places += [(index, position) for position in range(max(1, shared), len(row))]
    return tuple(places)


def _logits(state: TextTokens) -> Iterator[tuple[int, Float[Tensor, "some vocab"]]]:
    return logit_chunks(state.lm, state.hidden.to(state.lm.device), SHIFT_BYTES)


def _first_normalizer(lm: EditableModel, hidden: Float[Tensor, "places d_model"]) -> float:
    with torch.no_grad():
        return float(lm.unembed(hidden[:1].to(lm.device)).double().logsumexp(dim=-1))


def _compared(
    before: Float[Tensor, "some vocab"], after: Float[Tensor, "some vocab"], tokens: Int[Tensor, " some"]
) -> tuple[Tensor, ...]:
    """The columns of a `TokenShift` from logits, on the CPU; numbers in float64, tokens as ids."""
    p, q = (logits if logits.dtype == torch.float64 else logits.float() for logits in (before, after))
    p, q = p.log_softmax(dim=-1), q.log_softmax(dim=-1)
    rows = torch.arange(len(tokens), device=tokens.device)
    top, best = p.max(dim=-1)
    # A token that the model never says counts 0, whatever the other one makes of it. The sum cannot be negative;
    # rounding can make that of equal distributions so.
    kl = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(dim=-1).clamp_min(0)
    numbers = -p[rows, tokens], -q[rows, tokens], kl, top.exp()
    return *(column.double().cpu() for column in numbers), best.cpu(), q.argmax(dim=-1).cpu()
