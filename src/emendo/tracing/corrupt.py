"""Corrupting a subject: noise on its embeddings, or other subjects of as many tokens in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.arguments import checked
from emendo.errors import RequestError
from emendo.models import EditableModel
from emendo.models.wave import changing
from emendo.tracing.facts import AlignedFact
from emendo.tracing.settings import TraceSettings


@dataclass(frozen=True)
class Corrupted:
    """One clean run of a text and its corrupted runs, as inputs of one batch.

    Attributes:
        ids: Tokens; row 0 is clean, ``[1 + samples, length]``.
        begin: First token that is corrupted.
        noise: Added to what the embedding gives for rows 1 and on from `begin`; None where tokens were swapped.
    """

    ids: Int[Tensor, "rows length"]
    begin: int
    noise: Float[Tensor, "samples subject d_model"] | None

    @property
    def samples(self) -> int:
        """Corrupted runs."""
        return len(self.ids) - 1


@checked
def embedding_deviation(lm: EditableModel, subjects: Sequence[str]) -> float:
    """Standard deviation of all elements of the embeddings of subjects, each tokenised alone.

    Args:
        lm: The model.
        subjects: Of the facts of a run, or others; never a single one's.

    Source: the noise scale of ROME's public causal-tracing script, which takes 3 of these.
    """
    if len(subjects) < 2:
        raise RequestError(f"found {len(subjects)} subject(s) for a scale of noise; expected several (subjects=)")
    embedding = lm.model.get_input_embeddings()
    with torch.no_grad():
        parts = [embedding(torch.tensor(lm.encode(text), device=lm.device)) for text in subjects]
    return float(torch.cat(parts).double().std())


def corrupt(
    lm: EditableModel, fact: AlignedFact, settings: TraceSettings, deviation: float, subjects: Sequence[str] = ()
) -> Corrupted:
    """The clean and the corrupted runs of a fact, before anything is computed.

    Args:
        lm: The model.
        fact: The fact.
        settings: How to corrupt.
        deviation: Of the embeddings, from `embedding_deviation`.
        subjects: Candidates to stand in the subject's place (``corruption="swap"``).

    Raises:
        RequestError: No candidate has as many tokens as the subject.

    Source: the draws are those of ROME's public script: ``RandomState(seed)``, ``[samples, subject, d_model]``.
    """
    if settings.corruption == "swap":
        return _swapped(lm, fact, settings, subjects)
    shape = (settings.samples, fact.end - fact.begin, lm.model.get_input_embeddings().weight.shape[1])
    random = np.random.RandomState(settings.seed)
    drawn = random.randn(*shape) if settings.corruption == "noise" else random.uniform(-1, 1, shape)
    noise = torch.from_numpy(settings.noise * deviation * drawn)
    ids = torch.tensor([fact.ids] * (settings.samples + 1), device=lm.device)
    return Corrupted(ids, fact.begin, noise)


def _swapped(lm: EditableModel, fact: AlignedFact, settings: TraceSettings, subjects: Sequence[str]) -> Corrupted:
    """Up to `settings.samples` other subjects of as many tokens, in an order that the seed draws."""
    own = fact.fact.subject.strip()
    head, tail = fact.ids[: fact.begin], fact.ids[fact.end :]
    spaced = lm.decode(fact.ids[fact.begin : fact.end]).startswith(" ")
    found: dict[tuple[int, ...], None] = {}
    for other in dict.fromkeys(text.strip() for text in subjects):
        ids = tuple(lm.encode_bare(f" {other}" if spaced else other))
        if other != own and len(ids) == fact.end - fact.begin and ids != fact.ids[fact.begin : fact.end]:
            found[ids] = None
    if not found:
        raise RequestError(
            f"no other subject has {fact.end - fact.begin} tokens as {own!r} has, so none can stand in its place; give "
            "more facts (--facts), or corrupt by noise (--corrupt noise)"
        )
    candidates = sorted(found)
    order = np.random.RandomState(settings.seed).permutation(len(candidates))[: settings.samples]
    rows = [fact.ids, *(head + candidates[i] + tail for i in order)]
    return Corrupted(torch.tensor(rows, device=lm.device), fact.begin, None)


@contextmanager
def corrupting(lm: EditableModel, corrupted: Corrupted) -> Iterator[None]:
    """Forward passes of `corrupted.ids` inside the context see the noise on rows 1 and on."""
    if corrupted.noise is None:
        yield
        return
    noise, begin = corrupted.noise, corrupted.begin

    def add(out: Tensor) -> Tensor:
        out, at = out.clone(), slice(begin, begin + noise.shape[1])
        # Summed in float64 and rounded once, as the public script's in-place addition is.
        out[1:, at] = (out[1:, at].double() + noise.to(out.device)).to(out)
        return out

    with changing(lm.model.get_input_embeddings(), add):
        yield
