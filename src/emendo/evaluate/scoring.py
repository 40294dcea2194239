"""How likely a model finds given continuations: exact, batched, without logits that nobody reads.

Three facts save most of the work, and none of them changes a number beyond rounding:

* the last target token is predicted, never read, so it is not fed to the model;
* by causality a sequence that begins another one is computed inside it: two candidate targets of
  one prompt share a row wherever one context begins the other (always, for single-token targets);
* only positions that predict a target token are unembedded, a bounded number of rows at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emendo.errors import InputError, NumericalError
from emendo.evaluate.aggregate import EditScores
from emendo.evaluate.metrics import PromptScore, RecordScore, TargetScore
from emendo.models import ModelAdapter, pack_by_tokens
from emendo.progress import Progress, Silent
from emendo.requests import EditRecord
from emendo.text.alignment import encode_target

CPU_TOKEN_BUDGET = 512
ACCELERATOR_TOKEN_BUDGET = 16_384
"""Default padded tokens of one batch. A CPU is busy at a few hundred; more only adds padding."""

LOGIT_BYTES = 64 * 2**20
"""Most bytes of logits held at once; the softmax needs about as much again."""

Ids: TypeAlias = tuple[int, ...]


def score_targets(
    adapter: ModelAdapter,
    pairs: Sequence[tuple[str, str]],
    *,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> list[TargetScore]:
    """Score how likely the model finds each target after its prompt.

    Identical pairs are scored once. Batches hold similar lengths and are independent of the order
    of `pairs`.

    Args:
        adapter: The model.
        pairs: (prompt, target) texts. A target is tokenised as the continuation of its prompt.
        token_budget: Most padded tokens of one batch; None: 512 on a CPU, 16,384 elsewhere.
            Changes speed and memory, not scores.
        progress: Counts distinct pairs.

    Returns:
        One score per pair, in their order.

    Raises:
        InputError: A target or a prompt has no token, or together they exceed the model's length.
        NumericalError: The model's logits are not finite.
    """
    budget = resolve_token_budget(adapter, token_budget)
    progress = progress or Silent()
    distinct = list(dict.fromkeys(pairs))
    encoded = [_encode(adapter, prompt, target) for prompt, target in distinct]
    _check_lengths(adapter, distinct, encoded)
    hosted = _host_by_prefix([(*prompt, *target[:-1]) for prompt, target in encoded])
    progress.start("scoring", len(distinct))
    scores: dict[tuple[str, str], TargetScore] = {}
    for group in pack_by_tokens([len(row) for row in hosted.rows], budget):
        members = [member for row in group for member in hosted.members[row]]
        found = _score_batch(
            adapter,
            rows=[hosted.rows[row] for row in group],
            row_of=[place for place, row in enumerate(group) for _ in hosted.members[row]],
            queries=[encoded[member] for member in members],
        )
        for member, score in zip(members, found, strict=True):
            _check_finite(score, distinct[member])
            scores[distinct[member]] = score
        progress.advance(len(members))
    progress.finish()
    return [scores[pair] for pair in pairs]


@dataclass(frozen=True)
class RecordScores:
    """Scores of every record and prompt, and their aggregate.

    Attributes:
        records: One entry per record, in their order.
        scores: The metrics over all records.
    """

    records: tuple[RecordScore, ...]
    scores: EditScores

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "scores": self.scores.to_dict(),
            "records": [record.to_dict() for record in self.records],
        }


def evaluate_records(
    adapter: ModelAdapter,
    records: Sequence[EditRecord],
    *,
    token_budget: int | None = None,
    progress: Progress | None = None,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> RecordScores:
    """Score records on the model as it stands, edited or not.

    Every prompt is scored with the new target and, where the record names one, the true target; all
    of them in one call. A record without `target_true` has no comparison: it counts in the argmax
    and probability metrics of the new target, and `scores.notes` says so.

    Args:
        adapter: The model.
        records: At least one.
        token_budget: Most padded tokens of one batch, as in `score_targets`.
        progress: Counts distinct (prompt, target) pairs.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: There is no record, or a prompt cannot be scored.
        NumericalError: The model's logits are not finite.
    """
    if not records:
        raise InputError("there is nothing to evaluate: the list of records is empty")
    pairs = [(prompt, target) for record in records for prompt in _prompts(record) for target in _targets(record)]
    found = score_targets(adapter, pairs, token_budget=token_budget, progress=progress)
    by_pair = dict(zip(pairs, found, strict=True))
    scored = tuple(_record_score(record, by_pair) for record in records)
    scores = EditScores.from_records(scored, confidence=confidence, n_resamples=n_resamples, seed=seed)
    return RecordScores(scored, scores)


def resolve_token_budget(adapter: ModelAdapter, token_budget: int | None) -> int:
    """The token budget to use; None stands for a default that suits the model's device.

    Raises:
        InputError: The budget is not positive.
    """
    if token_budget is None:
        return CPU_TOKEN_BUDGET if adapter.device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET
    if token_budget < 1:
        raise InputError(f"token_budget must be at least 1, found {token_budget} (token_budget=)")
    return token_budget


def token_scores(
    adapter: ModelAdapter,
    hidden: Float[Tensor, "rows d_model"],
    row_of: Int[Tensor, " queries"],
    token_ids: Int[Tensor, " queries"],
) -> tuple[Float[Tensor, " queries"], Bool[Tensor, " queries"]]:
    """Log-probability of tokens after hidden states, and whether each is the argmax.

    Logits exist for a bounded number of rows at a time (`LOGIT_BYTES`).

    Args:
        adapter: The model, for its unembedding.
        hidden: Hidden states after the final norm.
        row_of: Ascending index into `hidden` of each query.
        token_ids: The token asked for by each query.

    Returns:
        Log-probabilities in nats (float32, or float64 for a float64 model), and argmax flags.
    """
    log_probs, hits = [], []
    step = max(1, LOGIT_BYTES // (4 * adapter.vocab_size))
    starts = torch.arange(0, len(hidden) + step, step, device=row_of.device)
    bounds = torch.searchsorted(row_of.contiguous(), starts).tolist()
    with torch.no_grad():
        for chunk, (low, high) in enumerate(itertools.pairwise(bounds)):
            logits = adapter.unembed(hidden[chunk * step : (chunk + 1) * step])
            rows, ids = row_of[low:high] - chunk * step, token_ids[low:high]
            log_probs.append(logits[rows, ids] - logits.logsumexp(dim=-1)[rows])
            hits.append(logits.argmax(dim=-1)[rows] == ids)
    return torch.cat(log_probs), torch.cat(hits)


@dataclass(frozen=True)
class _HostedRows:
    """Sequences to run, and which of the asked contexts each one contains as a beginning."""

    rows: list[Ids]
    members: list[list[int]]


def _host_by_prefix(contexts: Sequence[Ids]) -> _HostedRows:
    """Keep contexts that begin no other one; each of the rest is hosted by one that it begins.

    In sorted order everything that begins with a context follows it directly, so comparing
    neighbours is enough.
    """
    rows: list[Ids] = []
    members: list[list[int]] = []
    for index in sorted(range(len(contexts)), key=contexts.__getitem__, reverse=True):
        context = contexts[index]
        if rows and rows[-1][: len(context)] == context:
            members[-1].append(index)
        else:
            rows.append(context)
            members.append([index])
    return _HostedRows(rows, members)


def _score_batch(
    adapter: ModelAdapter,
    rows: Sequence[Ids],
    row_of: Sequence[int],
    queries: Sequence[tuple[Ids, Ids]],
) -> list[TargetScore]:
    """Scores of (prompt ids, target ids) queries, each hosted by the row `row_of` says."""
    batch = adapter.batch(rows)
    hidden = adapter.final_hidden(batch)
    width = hidden.shape[1]
    # Flat position of every predicted token: the last prompt token predicts the first target token.
    flat = [
        row * width + len(prompt) - 1 + j
        for row, (prompt, target) in zip(row_of, queries, strict=True)
        for j in range(len(target))
    ]
    device = hidden.device
    positions, place = torch.unique(torch.tensor(flat, device=device), return_inverse=True)
    order = torch.argsort(place, stable=True)
    ids = torch.tensor([token for _, target in queries for token in target], device=device)
    picked = hidden.reshape(-1, hidden.shape[-1])[positions]
    found, hit = token_scores(adapter, picked, place[order], ids[order])
    log_probs, hits = torch.empty_like(found), torch.empty_like(hit)
    log_probs[order], hits[order] = found, hit
    lengths = [len(target) for _, target in queries]
    return [
        TargetScore(nll=0.0 - math.fsum(terms) / len(terms), argmax=all(flags), n_tokens=len(terms))
        for terms, flags in zip(_split(log_probs.tolist(), lengths), _split(hits.tolist(), lengths), strict=True)
    ]


def _split(values: list[Any], lengths: Sequence[int]) -> list[list[Any]]:
    """Consecutive pieces of the given lengths."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(values[start : start + length])
        start += length
    return pieces


def _encode(adapter: ModelAdapter, prompt: str, target: str) -> tuple[Ids, Ids]:
    if not prompt.strip() or not target.strip():
        raise InputError(f"a prompt and its target must be visible text, found {prompt!r} and {target!r}")
    prompt_ids, target_ids = encode_target(adapter, prompt, target)
    return tuple(prompt_ids), tuple(target_ids)


def _check_lengths(adapter: ModelAdapter, pairs: Sequence[tuple[str, str]], encoded: Sequence[tuple[Ids, Ids]]) -> None:
    lengths = [len(prompt) + len(target) - 1 for prompt, target in encoded]
    long = [i for i, length in enumerate(lengths) if length > adapter.max_length]
    if long:
        worst = max(long, key=lengths.__getitem__)
        raise InputError(
            f"{len(long)} of {len(pairs)} prompts do not fit {adapter.name!r}, which has positions "
            f"for {adapter.max_length} tokens; the longest needs {lengths[worst]}: "
            f"{pairs[worst][0][:60]!r}... Shorten or drop these prompts"
        )


def _check_finite(score: TargetScore, pair: tuple[str, str]) -> None:
    if not math.isfinite(score.nll):
        raise NumericalError(
            f"the model gives {pair[1]!r} after {pair[0]!r} an nll of {score.nll}; expected a "
            "finite number. Its weights or activations overflow: if it was edited, roll the edit "
            "back; if its dtype is float16, load it in bfloat16 or float32 (--dtype)"
        )


def _prompts(record: EditRecord) -> tuple[str, ...]:
    return (record.request.text, *record.paraphrase_prompts, *record.neighborhood_prompts)


def _targets(record: EditRecord) -> tuple[str, ...]:
    if record.target_true is None:
        return (record.request.target,)
    return (record.request.target, record.target_true)


def _record_score(record: EditRecord, by_pair: dict[tuple[str, str], TargetScore]) -> RecordScore:
    true = record.target_true

    def scored(prompts: Sequence[str]) -> tuple[PromptScore, ...]:
        return tuple(
            PromptScore(
                prompt,
                by_pair[prompt, record.request.target],
                None if true is None else by_pair[prompt, true],
            )
            for prompt in prompts
        )

    return RecordScore(
        id=record.request.label,
        target=record.request.target,
        target_true=true,
        efficacy=scored([record.request.text]),
        paraphrase=scored(record.paraphrase_prompts),
        neighborhood=scored(record.neighborhood_prompts),
    )
