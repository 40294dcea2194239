"""What an edit did to each kind of text, and after each token: one row a topic, and what moved most.

A mean over all texts hides a kind that is a twentieth of them, so every kind is judged on its own and the worst one is
compared with the limit. Harm that follows one token, such as a question mark, is thin in every kind; so what comes
after a token is judged over all kinds together. All figures compare the edited model with the reference on the same
tokens; a kind that the reference cannot read is shown and not judged, as no edit can harm it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.evaluate import TextTokens, TokenShift, token_shift
from emendo.gate.canaries import CanaryText

CONFIDENT = 0.5
"""Probability of the most likely token from which the reference counts as sure of it."""

KNOWN = 0.75
"""A kind is judged where the reference's mean nll is at most this share of ln(vocabulary), that of a uniform guess."""

_UNMOVED = 10
"""Places without a shift that every token is counted with: one far place of a rare token is not what the token does."""

_MOST_TOKENS = 5
"""Tokens that are kept, those that moved most."""

_SHOWN_TOKENS = 12
"""Most tokens of the excerpt that shows where a kind moved most."""


@dataclass(frozen=True)
class Moved:
    """The place of a kind of text that moved most.

    Attributes:
        id: Of the text.
        excerpt: Its last tokens before the place.
        before: Most likely next token before.
        after: Most likely next token after.
        kl: KL(before ‖ after) there, in nats.
    """

    id: str
    excerpt: str
    before: str
    after: str
    kl: float


@dataclass(frozen=True)
class TopicShift:
    """What an edit did to one kind of text.

    Attributes:
        topic: The kind.
        tokens: Predicted tokens.
        nll_before: Mean negative log-likelihood a token, in nats, of the reference.
        nll_after: Of the edited model.
        kl: Mean KL(before ‖ after) a token, in nats.
        confident: Tokens at which the reference was sure (`CONFIDENT`) what comes next.
        flipped: Of them, those with another most likely token.
        known: Whether the reference can read this kind at all (`KNOWN`).
        worst: Where it moved most.
    """

    topic: str
    tokens: int
    nll_before: float
    nll_after: float
    kl: float
    confident: int
    flipped: int
    known: bool
    worst: Moved

    @property
    def ratio(self) -> float:
        """Perplexity, edited over reference."""
        return _exp(self.nll_after - self.nll_before)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class TokenMove:
    """What an edit did right after one token, wherever the judged kinds have it.

    Attributes:
        token: Its text.
        places: How often it is there.
        kl: KL(before ‖ after) right after it, in nats, mean over its places and `_UNMOVED` places that did not move.
        topic: The kind where the sum of it is largest.
    """

    token: str
    places: int
    kl: float
    topic: str


def text_moves(
    texts: Sequence[CanaryText], before: TextTokens, after: TextTokens
) -> tuple[tuple[TopicShift, ...], tuple[TokenMove, ...]]:
    """Every kind of text, in the order in which kinds first occur, and the tokens after which most moved, first.

    Args:
        texts: What was read, in that order.
        before: The reference.
        after: The edited model.

    Raises:
        InputError: See `token_shift`.
        NumericalError: See `token_shift`.
    """
    shift = token_shift(before, after)
    rows: dict[str, list[int]] = {}
    for row, (text, _) in enumerate(shift.places):
        rows.setdefault(texts[text].topic, []).append(row)
    topics = tuple(_topic(topic, found, texts, before, shift) for topic, found in rows.items())
    judged = {topic.topic: rows[topic.topic] for topic in topics if topic.known}
    return topics, _tokens(judged, before, shift)


def moved_most(topics: Sequence[TopicShift], tokens: Sequence[TokenMove] = ()) -> str:
    """One line for a person: which kind of text moved most, by how much and where; the next one; and after what."""
    judged = [topic for topic in topics if topic.known]
    if not judged:
        return "no kind of text that this model can read"
    first, *others = sorted(judged, key=lambda topic: topic.kl, reverse=True)
    worst = first.worst
    became = f" ({worst.before!r} became {worst.after!r})" if worst.before != worst.after else ""
    line = (
        f"{first.topic}: perplexity × {first.ratio:.3f}, KL {first.kl:.2g} nats a token, {first.flipped} of "
        f"{first.confident} sure tokens changed; most after {worst.excerpt!r}{became}"
    )
    if others:
        line += f". Next: {others[0].topic}, × {others[0].ratio:.3f}, KL {others[0].kl:.2g}"
    if tokens:
        line += f". After one token: {tokens[0].token!r}, KL {tokens[0].kl:.2g}, most of it in {tokens[0].topic}"
    return line


def _tokens(rows: Mapping[str, Sequence[int]], before: TextTokens, shift: TokenShift) -> tuple[TokenMove, ...]:
    """The tokens after which most moved, over the rows of all kinds."""
    moved: dict[int, dict[str, list[float]]] = {}
    kl = shift.kl.tolist()
    for topic, of_topic in rows.items():
        for row in of_topic:
            text, position = shift.places[row]
            moved.setdefault(before.texts[text][position - 1], {}).setdefault(topic, []).append(kl[row])
    found = []
    for token, kinds in moved.items():
        sums = {topic: sum(values) for topic, values in kinds.items()}
        places = sum(map(len, kinds.values()))
        mean = sum(sums.values()) / (places + _UNMOVED)
        found.append(TokenMove(before.lm.decode([token]), places, mean, max(sums, key=lambda topic: sums[topic])))
    return tuple(sorted(found, key=lambda move: -move.kl)[:_MOST_TOKENS])


def _topic(
    topic: str,
    rows: Sequence[int],
    texts: Sequence[CanaryText],
    before: TextTokens,
    shift: TokenShift,
) -> TopicShift:
    kl, sure = shift.kl[rows], shift.confidence[rows] >= CONFIDENT
    nll_before, nll_after = float(shift.nll_before[rows].mean()), float(shift.nll_after[rows].mean())
    return TopicShift(
        topic=topic,
        tokens=len(rows),
        nll_before=nll_before,
        nll_after=nll_after,
        kl=float(kl.mean()),
        confident=int(sure.sum()),
        flipped=int((shift.flipped[rows] & sure).sum()),
        known=nll_before <= KNOWN * math.log(before.lm.vocab_size),
        worst=_moved(texts, before, shift, rows[int(kl.argmax())]),
    )


def _moved(texts: Sequence[CanaryText], before: TextTokens, shift: TokenShift, row: int) -> Moved:
    text, position = shift.places[row]
    decode = before.lm.decode
    excerpt = decode(before.texts[text][max(0, position - _SHOWN_TOKENS) : position])
    old, new = (decode([int(top[row])]) for top in (shift.top_before, shift.top_after))
    return Moved(texts[text].id, excerpt, old, new, float(shift.kl[row]))


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
