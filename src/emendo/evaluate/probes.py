"""Accuracy on further questions: portability, multi-hop, locality. Any of a probe's answers counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import Confidence, Count, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.generated import GeneratedAnswer, generate_texts
from emendo.evaluate.scoring import target_scores_by_pair
from emendo.evaluate.table import Means, mean_over_records
from emendo.models import EditableModel
from emendo.progress import Watched
from emendo.requests import PROBE_KINDS, EditRecord, Probe
from emendo.solve.numerics import pinned


@dataclass(frozen=True)
class ProbeScore:
    """How a model answers one probe.

    Attributes:
        kind: One of `PROBE_KINDS`.
        group: The data set's own name for this sort of probe.
        prompt: The question.
        argmax: Every token of one of the answers is the most likely one under teacher forcing.
        best_answer: The answer with the smallest nll.
        nll: Of that answer, mean per token, in nats.
        generated: What the model says, where it was asked to.
    """

    kind: str
    group: str
    prompt: str
    argmax: bool
    best_answer: str
    nll: float
    generated: GeneratedAnswer | None = None


@dataclass(frozen=True)
class ProbeScores:
    """Answers to all probes, and their means in percent.

    Attributes:
        records: The probes of each record, in order.
        means: ``<kind>_argmax``, and with generation ``<kind>_exact`` and ``<kind>_contained``: mean over the probes of
            that kind of a record, then over records; None for a kind that no record has.
    """

    records: tuple[tuple[ProbeScore, ...], ...]
    means: Means

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "scores": self.means.to_dict(),
            "records": [[asdict(probe) for probe in probes] for probes in self.records],
        }


@checked
@pinned()
def probe_scores(
    lm: EditableModel,
    records: Sequence[EditRecord],
    *,
    new_tokens: Count | None = None,
    chat: bool = False,
    token_budget: Count | None = None,
    progress: Watched = None,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> ProbeScores:
    """Ask every probe of every record; a probe is right where one of its answers is.

        <kind>_argmax     1[some answer: every token is the argmax under teacher forcing]
        <kind>_exact      1[some answer: exact_match(text, answer)]            with `new_tokens`
        <kind>_contained  1[some answer: contained_match(text, answer)]        with `new_tokens`

    Args:
        lm: The model.
        records: At least one of them with probes.
        new_tokens: Also generate so many tokens after each probe; None leaves generation out.
        chat: Generate through the model's chat template.
        token_budget: Most tokens run at once. Changes speed and memory, not scores.
        progress: Counts distinct (probe, answer) pairs.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InputError: No record has a probe, or a prompt cannot be asked.
        NumericalError: The model's logits are not finite.

    Source: Yao et al. 2023 (arXiv 2305.13172), portability; Zhong et al. 2023 (MQuAKE, arXiv 2305.14795), multi-hop.
    """
    probes = [probe for record in records for probe in record.probes]
    asked = [record.request.asking_probe(probe) for record in records for probe in record.probes]
    if not probes:
        raise InputError(f"none of {len(records)} records has a probe; expected records with probes (probes=)")
    pairs = [(prompt, answer) for prompt, probe in zip(asked, probes, strict=True) for answer in probe.answers]
    found = target_scores_by_pair(lm, pairs, token_budget=token_budget, progress=progress)
    said: list[GeneratedAnswer | None] = [None] * len(probes)
    if new_tokens is not None:
        texts = generate_texts(lm, asked, chat=chat, new_tokens=new_tokens)
        said = [
            GeneratedAnswer.judged(text, probe.answers, None if chat or not isinstance(prompt, str) else "auto")
            for text, prompt, probe in zip(texts, asked, probes, strict=True)
        ]
    answered, prompts = iter(said), iter(asked)

    def scored(probe: Probe) -> ProbeScore:
        prompt = next(prompts)
        by_answer = {answer: found[prompt, answer] for answer in probe.answers}
        best = min(by_answer, key=lambda answer: by_answer[answer].nll)
        right = any(score.argmax for score in by_answer.values())
        return ProbeScore(probe.kind, probe.group, probe.prompt, right, best, by_answer[best].nll, next(answered))

    scores = tuple(tuple(scored(probe) for probe in record.probes) for record in records)
    return ProbeScores(scores, probe_means(scores, confidence=confidence, n_resamples=n_resamples, seed=seed))


@checked
def probe_means(
    records: Sequence[Sequence[ProbeScore]],
    *,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
    seed: Seed = 0,
) -> Means:
    """The means of `ProbeScores` from the probes of its records; arguments as of `probe_scores`."""
    generated = any(probe.generated is not None for probes in records for probe in probes)
    measures = ("argmax", "exact", "contained") if generated else ("argmax",)
    return mean_over_records(
        [_measures(probes) for probes in records],
        [f"{kind}_{measure}" for kind in PROBE_KINDS for measure in measures],
        scale=100,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )


def _measures(probes: Sequence[ProbeScore]) -> dict[str, float | None]:
    """Shares of one record's probes by kind and measure."""
    hits: dict[str, list[bool]] = {}
    for probe in probes:
        hits.setdefault(f"{probe.kind}_argmax", []).append(probe.argmax)
        if probe.generated is not None:
            hits.setdefault(f"{probe.kind}_exact", []).append(probe.generated.exact)
            hits.setdefault(f"{probe.kind}_contained", []).append(probe.generated.contained)
    return {name: math.fsum(values) / len(values) for name, values in hits.items()}
