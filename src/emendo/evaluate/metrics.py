"""CounterFact metrics as pure functions of negative log-likelihoods, and the scores they read.

Two strictness levels live here, always under different names: *probability* (ES, PS, NS, S, and the
magnitudes EM, PM, NM) compares the new target with the true one; *argmax* (EA, PA, NA) asks that
every token of the expected target be the most likely one under teacher forcing. Every "nll" is a
mean per target token, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import Measured, checked
from emendo.errors import InputError, NumericalError


@dataclass(frozen=True)
class TargetScore:
    """How a model takes one continuation of one prompt.

    Attributes:
        nll: Mean negative log-likelihood per target token, in nats.
        argmax: Every target token is the most likely one under teacher forcing.
        n_tokens: Tokens of the target.
    """

    nll: float
    argmax: bool
    n_tokens: int

    @property
    def probability(self) -> float:
        """Geometric mean of the target tokens' probabilities, exp(-nll)."""
        return math.exp(-self.nll)


@dataclass(frozen=True)
class PromptScore:
    """Scores of one prompt.

    Attributes:
        prompt: The text before the target.
        target: The new target of the edit.
        target_true: The true target; None where the record names none.
    """

    prompt: str
    target: TargetScore
    target_true: TargetScore | None = None


@dataclass(frozen=True)
class RecordScore:
    """Scores of one record's prompts.

    Attributes:
        id: The request's id, or its subject.
        target: The new target.
        target_true: The true target; None where the record names none.
        efficacy: The edited prompt itself (one entry).
        paraphrase: Other wordings of it.
        neighborhood: Prompts about other subjects.
    """

    id: str
    target: str
    target_true: str | None
    efficacy: tuple[PromptScore, ...]
    paraphrase: tuple[PromptScore, ...] = ()
    neighborhood: tuple[PromptScore, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: every score of every prompt."""
        return asdict(self)


@checked
def rewrite_success(new: Sequence[Measured], true: Sequence[Measured]) -> float:
    """Share of prompts on which the new target beats the true one: ES and PS.

        mean over prompts of 1[nll(new) < nll(true)]        strict: a tie counts 0

    Args:
        new: nll of the new target, one per prompt.
        true: nll of the true target, one per prompt.

    Returns:
        A share in [0, 1].

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: efficacy, paraphrase score.
    """
    return _mean([float(n < t) for n, t in _pairs(new, true)])


@checked
def neighborhood_success(new: Sequence[Measured], true: Sequence[Measured]) -> float:
    """Share of neighborhood prompts on which the true target still beats the new one: NS.

        mean over prompts of 1[nll(true) < nll(new)]        strict: a tie counts 0

    Args:
        new: nll of the new target, one per prompt.
        true: nll of the true target, one per prompt.

    Returns:
        A share in [0, 1].

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: neighborhood score.
    """
    return _mean([float(t < n) for n, t in _pairs(new, true)])


@checked
def rewrite_magnitude(new: Sequence[Measured], true: Sequence[Measured]) -> float:
    """Mean probability margin of the new target over the true one: EM and PM.

        mean over prompts of exp(-nll(new)) - exp(-nll(true))

    Args:
        new: nll of the new target, one per prompt.
        true: nll of the true target, one per prompt.

    Returns:
        A difference of per-token geometric-mean probabilities, in [-1, 1].

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: efficacy magnitude.
    """
    return _mean([math.exp(-n) - math.exp(-t) for n, t in _pairs(new, true)])


@checked
def neighborhood_magnitude(new: Sequence[Measured], true: Sequence[Measured]) -> float:
    """Mean probability margin of the true target over the new one on neighborhood prompts: NM.

        mean over prompts of exp(-nll(true)) - exp(-nll(new))

    Args:
        new: nll of the new target, one per prompt.
        true: nll of the true target, one per prompt.

    Returns:
        A difference of per-token geometric-mean probabilities, in [-1, 1].

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: neighborhood magnitude.
    """
    return -rewrite_magnitude(new, true)


@checked
def argmax_accuracy(scores: Sequence[TargetScore]) -> float:
    """Share of prompts whose expected target is the argmax at every token: EA, PA and NA.

        mean over prompts of 1[all j: target_j = argmax p(· | prompt, target_<j)]

    The expected target is the new one on the edited prompt and on paraphrases, the true one on
    neighborhood prompts.

    Args:
        scores: The expected target's score, one per prompt.

    Returns:
        A share in [0, 1].

    Source: Yoon et al. 2024 (arXiv 2405.00664), the "accuracy" form of the CounterFact metrics.
    """
    return _mean([float(score.argmax) for score in scores])


@checked
def mean_probability(scores: Sequence[TargetScore]) -> float:
    """Mean over prompts of exp(-nll) of one target: EP, PP (new target) and NP (true target).

    Args:
        scores: The target's score, one per prompt.

    Returns:
        A probability in [0, 1].
    """
    return _mean([score.probability for score in scores])


@checked
def harmonic_score(efficacy: float, paraphrase: float, neighborhood: float) -> float:
    """Editing score S: harmonic mean of the *aggregated* ES, PS and NS; 0 as soon as one is 0.

        S = 3 / (1/ES + 1/PS + 1/NS)

    Args:
        efficacy: ES.
        paraphrase: PS, in the same unit.
        neighborhood: NS, in the same unit.

    Returns:
        S, in the unit of the arguments.

    Raises:
        InputError: An argument is negative or not a number.

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: score. No part is rounded first.
    """
    return harmonic_mean((efficacy, paraphrase, neighborhood))


@checked
def harmonic_mean(parts: Sequence[float]) -> float:
    """Harmonic mean, n / Σ 1/part; 0 as soon as one part is 0.

    Raises:
        InputError: There is no part, or one is negative or not a number.
    """
    if not parts or not all(part >= 0 for part in parts):
        raise InputError(f"a harmonic mean needs numbers of at least 0, found {tuple(parts)}")
    return 0.0 if min(parts) == 0 else len(parts) / sum(1 / part for part in parts)


def _pairs(new: Sequence[Measured], true: Sequence[Measured]) -> list[tuple[float, float]]:
    if len(new) != len(true) or not new:
        raise InputError(
            "expected at least one prompt, with one nll of the new and one of the true target "
            f"each; found {len(new)} and {len(true)}"
        )
    pairs = list(zip(new, true, strict=True))
    # A comparison with NaN is false, so a broken model would pass for one that merely fails.
    if any(math.isnan(n) or math.isnan(t) for n, t in pairs):
        raise NumericalError("an nll is not a number; the model that gave it is broken")
    return pairs


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise InputError("a mean over prompts needs at least one prompt")
    mean = math.fsum(values) / len(values)
    if math.isnan(mean):
        raise NumericalError("a score is not a number; the model that gave it is broken")
    return mean
