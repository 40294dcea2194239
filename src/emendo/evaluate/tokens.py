"""How likely a model finds every token of given continuations: exact, and without work that is done twice.

Four facts save most of the work, and none of them changes a number beyond rounding:

* the last target token is predicted, never read, so it is not fed to the model;
* by causality texts that begin alike share everything up to where they part: prompts of one template, and the targets
  of one prompt, are branches of one tree, of which each node is computed once (`emendo.models.tree`);
* the branches stand in one row of tokens, so no padding is computed;
* only positions that predict a target token are unembedded, a bounded number of rows at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emendo.arguments import Count, checked
from emendo.errors import InputError, NumericalError, SelfCheckError
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.models.tree import PrefixTree, build_prefix_tree, group_by_prefix, tree_hidden
from emendo.progress import Watched, watching
from emendo.requests import Join, Pair, Prompt, prompt_text

CPU_TOKEN_BUDGET = 512
ACCELERATOR_TOKEN_BUDGET = 16_384
"""Default tokens of one padded batch. A CPU is busy at a few hundred; more only adds padding."""

CPU_TREE_BUDGET = 384
ACCELERATOR_TREE_BUDGET = 2048
"""Default tokens of one tree. Attention in a tree is quadratic in them: at 384 a tenth of the time of linear maps."""

LOGIT_BYTES = 64 * 2**20
"""Most bytes of logits held at once; the softmax needs about as much again."""

TREE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Most relative deviation of a tree's hidden states from the model's own forward pass."""

Ids: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class TokenScores:
    """How a model takes one continuation of one prompt, token by token, under teacher forcing.

    Attributes:
        targets: Token ids of the continuation.
        log_probs: Log-probability of each, in nats.
        predicted: The most likely token id at the place of each.
    """

    targets: Ids
    log_probs: tuple[float, ...]
    predicted: Ids

    @property
    def hits(self) -> tuple[bool, ...]:
        """Whether each token is the most likely one."""
        return tuple(token == best for token, best in zip(self.targets, self.predicted, strict=True))

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per token, in nats."""
        return 0.0 - math.fsum(self.log_probs) / len(self.log_probs)


@checked
def score_tokens(
    lm: EditableModel,
    pairs: Sequence[Pair],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
) -> list[TokenScores]:
    """Score every token of each target after its prompt.

    Identical pairs are scored once. Trees hold texts that begin alike and are independent of the order of `pairs`.

    Args:
        lm: The model.
        pairs: (prompt, target) texts, or (prompt, target, join). A target is tokenised as the continuation of its
            prompt, joined as `EditRequest.join` says; after a `Conversation` it is the answer.
        token_budget: Most distinct tokens run at once; None: 384 on a CPU, 2,048 elsewhere.
            Changes speed and memory, not scores.
        progress: Counts distinct pairs.

    Returns:
        One score per pair, in their order.

    Raises:
        InputError: A target or a prompt has no token, or together they exceed the model's length.
        NumericalError: The model's logits are not finite.
        SelfCheckError: A tree disagrees with the model's own forward pass.
    """
    scores = scores_by_pair(lm, pairs, token_budget=token_budget, progress=progress)
    return [scores[pair] for pair in pairs]


def scores_by_pair(
    lm: EditableModel,
    pairs: Iterable[Pair],
    *,
    token_budget: int | None = None,
    progress: Watched = None,
) -> dict[Pair, TokenScores]:
    """The score of each distinct pair; arguments and errors as of `score_tokens`."""
    budget = tree_budget(lm, token_budget)
    progress = watching(progress)
    distinct = list(dict.fromkeys(pairs))
    encoded = [_encode(lm, *pair) for pair in distinct]
    _check_lengths(lm, distinct, encoded)
    fed = [(*prompt, *target[:-1]) for prompt, target in encoded]
    progress.start("scoring", len(distinct))
    scores: dict[Pair, TokenScores] = {}
    for group, forest, hidden in hidden_in_trees(lm, fed, budget):
        found = _score_tree(lm, hidden, forest, [encoded[index] for index in group])
        for index, score in zip(group, found, strict=True):
            _check_finite(score, distinct[index])
            scores[distinct[index]] = score
        progress.advance(len(group))
    progress.finish()
    return scores


def hidden_in_trees(
    lm: EditableModel, texts: Sequence[Ids], budget: int
) -> Iterator[tuple[list[int], PrefixTree, Float[Tensor, "nodes d_model"]]]:
    """Run texts, those that begin alike in one tree; the first tree is compared with the model's own forward pass.

    A caller that keeps some of the hidden states copies them: a view keeps all of its tree in memory.

    Args:
        lm: The model.
        texts: Token ids, each no longer than the model has positions for.
        budget: Most distinct tokens run at once.

    Yields:
        Indices of the texts of a tree, its forest (one path a text, in that order), and the final hidden states of its
        nodes.

    Raises:
        SelfCheckError: The first tree disagrees with the model's own forward pass.
    """
    with lm.isolated() as own:
        for number, group in enumerate(group_by_prefix(texts, budget)):
            planted = [texts[index] for index in group]
            forest = build_prefix_tree(planted)
            hidden = tree_hidden(own, forest)
            if number == 0:
                check_tree(own, planted, forest, hidden)
            yield group, forest, hidden


def resolve_token_budget(lm: EditableModel, token_budget: int | None) -> int:
    """The padded tokens of one batch; None stands for a default that suits the model's device.

    Raises:
        InputError: The budget is not positive.
    """
    if token_budget is None:
        return CPU_TOKEN_BUDGET if lm.device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET
    return token_budget


def tree_budget(lm: EditableModel, token_budget: int | None) -> int:
    """The tokens of one tree; None stands for a default that suits the model's device.

    Raises:
        InputError: The budget is not positive.
    """
    if token_budget is None:
        return CPU_TREE_BUDGET if lm.device.type == "cpu" else ACCELERATOR_TREE_BUDGET
    return resolve_token_budget(lm, token_budget)


def check_tree(
    lm: EditableModel, texts: Sequence[Ids], forest: PrefixTree, hidden: Float[Tensor, "nodes d_model"]
) -> None:
    """One text of the tree must be what the model's own forward pass gives: blocks may do more than Emendo knows.

    Raises:
        SelfCheckError: They differ.
    """
    shortest = min(range(len(texts)), key=lambda i: len(texts[i]))
    expected = lm.final_hidden(lm.batch([texts[shortest]]))[0]
    if lm.rounds_inputs:  # int8 rounds a text by what is beside it: only alone do both ways round alike
        forest = build_prefix_tree([texts[shortest]])
        found = tree_hidden(lm, forest)[list(forest.paths[0])]
    else:
        found = hidden[list(forest.paths[shortest])]
    error = float((found - expected).double().norm() / expected.double().norm().clamp_min(1e-12))
    tolerance = TREE_TOLERANCE[torch.bfloat16 if lm.rounds_inputs else lm.dtype]
    if error > tolerance:  # NaN passes here: a broken model is named by its scores
        raise SelfCheckError(
            f"running {lm.name!r} over a prefix tree deviates from its forward pass by {error:.2e} relative "
            f"(expected at most {tolerance:.0e}); its blocks do more than Emendo knows"
        )


@checked
def token_scores(
    lm: EditableModel,
    hidden: Float[Tensor, "rows d_model"],
    row_of: Int[Tensor, " queries"],
    token_ids: Int[Tensor, " queries"],
) -> tuple[Float[Tensor, " queries"], Bool[Tensor, " queries"]]:
    """Log-probability of tokens after hidden states, and whether each is the argmax.

    Logits exist for a bounded number of rows at a time (`LOGIT_BYTES`).

    Args:
        lm: The model, for its unembedding.
        hidden: Hidden states after the final norm.
        row_of: Ascending index into `hidden` of each query.
        token_ids: The token asked for by each query.

    Returns:
        Log-probabilities in nats (float32, or float64 for a float64 model), and argmax flags.
    """
    log_probs, predicted = token_predictions(lm, hidden, row_of, token_ids)
    return log_probs, predicted == token_ids


def token_predictions(
    lm: EditableModel,
    hidden: Float[Tensor, "rows d_model"],
    row_of: Int[Tensor, " queries"],
    token_ids: Int[Tensor, " queries"],
) -> tuple[Float[Tensor, " queries"], Int[Tensor, " queries"]]:
    """As `token_scores`, but with the most likely token itself."""
    log_probs, predicted = [], []
    row_of = row_of.contiguous()
    for start, logits in logit_chunks(lm, hidden):
        ends = torch.tensor([start, start + len(logits)], device=row_of.device)
        low, high = torch.searchsorted(row_of, ends).tolist()
        rows, ids = row_of[low:high] - start, token_ids[low:high]
        log_probs.append(logits[rows, ids] - logits.logsumexp(dim=-1)[rows])
        predicted.append(logits.argmax(dim=-1)[rows])
    return torch.cat(log_probs), torch.cat(predicted)


def logit_chunks(
    lm: EditableModel, hidden: Float[Tensor, "rows d_model"], at_once: int | None = None
) -> Iterator[tuple[int, Float[Tensor, "some vocab"]]]:
    """The first row and the logits of consecutive rows, `at_once` bytes at a time (None: `LOGIT_BYTES`)."""
    step = max(1, (at_once or LOGIT_BYTES) // (4 * lm.vocab_size))
    for start in range(0, len(hidden), step):
        # Not a yield inside no_grad(): two generators that are read in turn would restore each other's state, and leave
        # gradients switched off for the whole process.
        with torch.no_grad():
            logits = lm.unembed(hidden[start : start + step])
        yield start, logits


def _score_tree(
    lm: EditableModel, hidden: Float[Tensor, "nodes d_model"], forest: PrefixTree, queries: Sequence[tuple[Ids, Ids]]
) -> list[TokenScores]:
    """Scores of (prompt ids, target ids) queries, whose fed tokens are the paths of the forest."""
    device = hidden.device
    # The last prompt token predicts the first target token.
    nodes = [node for path, (prompt, _) in zip(forest.paths, queries, strict=True) for node in path[len(prompt) - 1 :]]
    positions, place = torch.unique(torch.tensor(nodes, device=device), return_inverse=True)
    order = torch.argsort(place, stable=True)
    ids = torch.tensor([token for _, target in queries for token in target], device=device)
    found, best = token_predictions(lm, hidden[positions], place[order], ids[order])
    log_probs, predicted = torch.empty_like(found), torch.empty_like(best)
    log_probs[order], predicted[order] = found, best
    terms, tokens = iter(log_probs.tolist()), iter(predicted.tolist())
    return [
        TokenScores(
            targets=target,
            log_probs=tuple(itertools.islice(terms, len(target))),
            predicted=tuple(itertools.islice(tokens, len(target))),
        )
        for _, target in queries
    ]


def _encode(lm: EditableModel, prompt: Prompt, target: str, join: Join = "auto") -> tuple[Ids, Ids]:
    if not prompt_text(prompt).strip() or not target.strip():
        raise InputError(f"a prompt and its target must be visible text, found {prompt!r} and {target!r}")
    prompt_ids, target_ids = encode_target(lm, prompt, target, join)
    return tuple(prompt_ids), tuple(target_ids)


def _check_lengths(lm: EditableModel, pairs: Sequence[Pair], encoded: Sequence[tuple[Ids, Ids]]) -> None:
    lengths = [len(prompt) + len(target) - 1 for prompt, target in encoded]
    long = [i for i, length in enumerate(lengths) if length > lm.max_length]
    if long:
        worst = max(long, key=lengths.__getitem__)
        raise InputError(
            f"{len(long)} of {len(pairs)} prompts do not fit {lm.name!r}, which has positions "
            f"for {lm.max_length} tokens; the longest needs {lengths[worst]}: "
            f"{prompt_text(pairs[worst][0])[:60]!r}... Shorten or drop these prompts"
        )


def _check_finite(score: TokenScores, pair: Pair) -> None:
    if not math.isfinite(score.nll):
        raise NumericalError(
            f"the model gives {pair[1]!r} after {prompt_text(pair[0])!r} an nll of {score.nll}; expected a "
            "finite number. Its weights or activations overflow: if it was edited, roll the edit "
            "back; if its dtype is float16, load it in bfloat16 or float32 (--dtype)"
        )
