"""Questions that a server has to answer as Emendo computes: the edited facts, and canaries that no edit is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emendo.arguments import checked
from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.evaluate import next_token_log_probs, score_tokens
from emendo.gate.canaries import PACKAGED, read_canaries
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.requests import EditRequest, prompt_text
from emendo.serving.engines import Question
from emendo.updates.update import ModelUpdate

MOST_FACTS = 32
"""Facts that are asked, evenly spread over all of them."""

MOST_CANARIES, LEAST_CANARIES = 16, 4
"""Canaries that are asked: those whose answer the model is surest of, without the edits and with them.

Servers round, llama.cpp even activations to 8 bits, and a sure answer moves least by that: on the demo model in 4 bits
by 0.02 nats, where one of probability 0.2 moves by 0.2. So a difference there says most about edit and model.
"""

SURE = math.log(0.8)
"""Log-probability from which an answer is sure; of less sure ones only as many are asked as make up the least."""


@dataclass(frozen=True)
class Probe:
    """A prompt, an answer, and what Emendo computes for it.

    Attributes:
        kind: ``"fact"`` or ``"canary"``.
        text: The prompt, or the conversation.
        question: Tokens of it and of the answer: of a fact its target, of a canary what the unedited model says next.
        base: Log-probability of the answer in the unedited model, in nats.
        edited: The same in the edited model.
    """

    kind: str
    text: str
    question: Question
    base: float
    edited: float


@dataclass(frozen=True)
class Compared:
    """What a server answered to a probe.

    Attributes:
        kind: Of the probe.
        text: Its prompt.
        own: What Emendo computes, in nats.
        served: What the server says.
    """

    kind: str
    text: str
    own: float
    served: float

    @property
    def difference(self) -> float:
        """|served − own| in nats."""
        return abs(self.served - self.own)

    def within(self, tolerance: float) -> bool:
        """Whether they agree: to `tolerance` nats, or to that share of an answer that is less likely than 1/e.

        Rounding moves a log-probability in proportion to its size: 0.05 nats of an answer that the model gives are 0.5
        nats of one that is 20,000 times less likely.
        """
        return self.difference <= tolerance * max(1.0, abs(self.own))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "difference": self.difference}


@checked
def make_probes(lm: EditableModel, updates: Sequence[ModelUpdate], files: Sequence[str] = (PACKAGED,)) -> list[Probe]:
    """Probes of updates, with Emendo's own numbers for both states of the model.

    Args:
        lm: The unedited model; left as it is.
        updates: In order, the first one planned on the unedited model.
        files: Of canary prompts, as a gate takes them.

    Raises:
        InputError: There is nothing to ask.
        GateConfigError: A file of canaries cannot be used.
    """
    rows = [row for update in updates for row in update.requests]
    requests = [EditRequest.from_dict(row) for row in _spread(rows, MOST_FACTS)]
    pairs = [(request.asked, request.target, request.join) for request in requests]
    prompts = list(read_canaries(files).prompts) if files else []
    if not pairs and not prompts:
        raise InputError("there is nothing to ask the server: no recorded fact and no canary (--probe FILE)")
    facts = score_tokens(lm, pairs) if pairs else []
    before, said = _canaries(lm, prompts)
    with EditSession(lm).preview(updates) as edited:
        edited_facts = score_tokens(edited, pairs) if pairs else []
        after, _ = _canaries(edited, prompts, said)
    probes = [
        _probe(
            *(lm, "fact", prompt_text(prompt), encode_target(lm, prompt, target, join)[0], score.targets),
            *(math.fsum(score.log_probs), math.fsum(now.log_probs)),
        )
        for (prompt, target, join), score, now in zip(pairs, facts, edited_facts, strict=True)
    ]
    return probes + [
        _probe(lm, "canary", prompts[at], lm.encode(prompts[at]), (said[at],), before[at], after[at])
        for at in _surest(before, after)
    ]


def _probe(
    lm: EditableModel,
    kind: str,
    text: str,
    asked: Sequence[int],
    answer: tuple[int, ...],
    base: float,
    edited: float,
) -> Probe:
    partial = frozenset(token for token in answer if "\N{REPLACEMENT CHARACTER}" in lm.decode([token]))
    return Probe(kind, text, Question(tuple(asked), answer, partial), base, edited)


def _canaries(
    lm: EditableModel, prompts: Sequence[str], said: Sequence[int] | None = None
) -> tuple[list[float], list[int]]:
    """Log-probability of the next token `said` after every prompt, by default of the likeliest, and these tokens."""
    if not prompts:
        return [], []
    found = next_token_log_probs(lm, prompts)
    tokens = [int(token) for token in found.top] if said is None else list(said)
    return [float(row[tokens[start + at]]) for start, rows in found.chunks() for at, row in enumerate(rows)], tokens


def _surest(before: Sequence[float], after: Sequence[float]) -> list[int]:
    """Those canaries, in their order, that both states are surest of; see `MOST_CANARIES` and `SURE`."""
    sure = [min(pair) for pair in zip(before, after, strict=True)]
    ranked = sorted(range(len(sure)), key=lambda at: -sure[at])[:MOST_CANARIES]
    return sorted(at for rank, at in enumerate(ranked) if rank < LEAST_CANARIES or sure[at] >= SURE)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    step = -(-len(items) // most) if items else 1
    return list(items[::step])
