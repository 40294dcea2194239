"""zsRE: the share of answer tokens that the model predicts under teacher forcing, and what it keeps of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import Confidence, Count, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.table import Means, mean_over_records
from emendo.evaluate.tokens import TokenScores, scores_by_pair
from emendo.models import EditableModel
from emendo.progress import Watched
from emendo.requests import EditRecord, Pair

ZSRE_METRICS = ("efficacy", "paraphrase", "locality")


@checked
def token_accuracy(score: TokenScores) -> float:
    """Share of target tokens that are the argmax after the prompt and the tokens before them.

        1/|o| Σ_j 1[o_j = argmax p(· | prompt, o_<j)]

    Teacher forcing is by token ids. The published code decodes the first tokens and tokenises prompt and text anew,
    which gives the same wherever that round trip does.

    Source: Mitchell et al. 2022 (MEND, arXiv 2110.11309), zsRE; as used by Meng et al. 2023 (MEMIT, arXiv 2210.07229).
    """
    return sum(score.hits) / len(score.hits)


@dataclass(frozen=True)
class ZsreRecord:
    """Token accuracies of one record, in [0, 1].

    Attributes:
        id: The request's id, or its subject.
        efficacy: On the edited prompt, of the new target.
        paraphrase: On other wordings, mean over them; None without any.
        locality: On locality probes, of their first answer, mean over them; None without any.
    """

    id: str
    efficacy: float
    paraphrase: float | None
    locality: float | None


@dataclass(frozen=True)
class ZsreScores:
    """zsRE scores of all records, in percent.

    Attributes:
        records: Token accuracies of every record.
        means: ``efficacy``, ``paraphrase``, ``locality`` and ``score``, their harmonic mean, with intervals.
    """

    records: tuple[ZsreRecord, ...]
    means: Means

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"scores": self.means.to_dict(), "records": [asdict(record) for record in self.records]}


@checked
def zsre_scores(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    token_budget: Count | None = None,
    progress: Watched = None,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> ZsreScores:
    """Token accuracy on the edited question, its rephrasing and an unrelated question.

    Locality is accuracy *against the answer of the data set* (Natural Questions), as published: low on an untouched
    model, and no agreement with it. For that see `prediction_agreement`.

    Args:
        lm: The model.
        records: At least one; the unrelated questions are probes of kind ``"locality"``.
        token_budget: Most distinct tokens run at once, as in `score_tokens`. Changes speed and memory, not scores.
        progress: Counts distinct (prompt, target) pairs.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: There is no record, or a prompt cannot be scored.
        NumericalError: The model's logits are not finite.

    Source: Meng et al. 2023 (MEMIT, arXiv 2210.07229), zsRE: efficacy, paraphrase, specificity, score.
    """
    if not records:
        raise InputError("there is nothing to evaluate: the list of records is empty")
    groups = [_pairs(record) for record in records]
    pairs = (pair for record in groups for group in record for pair in group)
    scores = scores_by_pair(lm, pairs, token_budget=token_budget, progress=progress)

    def accuracy(group: Sequence[Pair]) -> float | None:
        return math.fsum(token_accuracy(scores[pair]) for pair in group) / len(group) if group else None

    found = tuple(
        ZsreRecord(record.request.label, token_accuracy(scores[efficacy[0]]), accuracy(paraphrase), accuracy(locality))
        for record, (efficacy, paraphrase, locality) in zip(records, groups, strict=True)
    )
    return ZsreScores(found, zsre_means(found, confidence=confidence, n_resamples=n_resamples, seed=seed))


@checked
def zsre_means(
    records: Sequence[ZsreRecord], *, confidence: Confidence = 0.95, n_resamples: Resamples = 1000, seed: Seed = 0
) -> Means:
    """The means of `ZsreScores` from the accuracies of its records; arguments as of `zsre_scores`."""
    return mean_over_records(
        [asdict(record) for record in records],
        ZSRE_METRICS,
        harmonic={"score": ZSRE_METRICS},
        scale=100,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


@checked
def prediction_agreement(before: Sequence[TokenScores], after: Sequence[TokenScores]) -> float:
    """Share of answer tokens at which two models predict the same token, right or wrong: agreement with the base model.

        mean over answers of 1/|o| Σ_j 1[argmax p_before(· | x, o_<j) = argmax p_after(· | x, o_<j)]

    Args:
        before: `score_tokens` of locality (prompt, answer) pairs on the base model.
        after: The same pairs on the edited model.

    Raises:
        InputError: The two are not scores of the same answers.

    Source: Wang et al. 2023 (EasyEdit, arXiv 2308.07269): locality.
    """
    if not before or [score.targets for score in before] != [score.targets for score in after]:
        raise InputError(
            f"agreement needs the same answers scored on both models, found {len(before)} before and {len(after)} after"
        )
    shares = [
        sum(one == other for one, other in zip(b.predicted, a.predicted, strict=True)) / len(b.predicted)
        for b, a in zip(before, after, strict=True)
    ]
    return math.fsum(shares) / len(shares)


def _pairs(record: EditRecord) -> tuple[list[Pair], ...]:
    """(prompt, target) of efficacy, paraphrase and locality."""
    new = record.request.target
    return (
        [record.request.pair(record.request.text, new)],
        [record.request.pair(prompt, new) for prompt in record.paraphrase_prompts],
        [(record.request.asking_probe(probe), probe.answers[0]) for probe in record.probes if probe.kind == "locality"],
    )
