"""Checks of canaries: prompts by the token after them, texts by every token, each kind of text on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emendo.evaluate import Drift, NextTokenLogProbs
from emendo.gate.evidence import SHOWN, Evidence, Measurement, share_of
from emendo.gate.sections import MovedConfig
from emendo.gate.topics import TopicShift
from emendo.models import EditableModel

_NO_PROMPT = "no canary file has a prompt (canaries.files)"
_NO_TEXT = "no canary file has a text or messages (canaries.files)"
_UNREAD = "the reference reads none of the texts better than a guess"


def canary_kl_mean(evidence: Evidence) -> Measurement:
    """Mean KL of the token after each prompt."""
    return _canary_kl(evidence, "mean", lambda shift: shift.mean)


def canary_kl_p99(evidence: Evidence) -> Measurement:
    """Its 99th percentile."""
    return _canary_kl(evidence, "99th percentile", lambda shift: shift.p99)


def canary_moved(config: MovedConfig, evidence: Evidence) -> Measurement:
    """Share of prompts that moved by more than the configuration's `above`."""
    shift = evidence.canary_shift
    if shift is None:
        return Measurement(None, 0, _NO_PROMPT)
    n = len(shift.kl)
    moved = sum(not value <= config.above for value in shift.kl)
    return share_of(moved, n, f"of {n} canary prompts moved by more than {config.above:g} nats", _most(shift)[:moved])


def canary_flips(evidence: Evidence) -> Measurement:
    """Share of prompts with another most likely next token."""
    if evidence.canary_tokens is None:
        return Measurement(None, 0, _NO_PROMPT)
    return flips(evidence.lm, *evidence.canary_tokens, "canary prompts")


def flips(lm: EditableModel, before: NextTokenLogProbs, after: NextTokenLogProbs, what: str) -> Measurement:
    """Share of prompts with another most likely next token.

    Not `measure_drift`: where a fact is put in front of prompts, they differ before and after.

    Args:
        lm: For the text of tokens.
        before: The reference.
        after: The edited model.
        what: What the prompts are.
    """
    pairs = zip(before.places, before.top.tolist(), after.top.tolist(), strict=True)
    flipped = [
        {"prompt": prompt, "before": lm.decode([old]), "after": lm.decode([new])}
        for prompt, old, new in pairs
        if old != new
    ]
    n = len(before.places)
    return share_of(len(flipped), n, f"of {n} {what} are continued differently", flipped[:SHOWN])


def text_perplexity(evidence: Evidence) -> Measurement:
    """Perplexity of the kind of text whose perplexity grew most, edited over reference."""
    return _worst_topic(
        evidence,
        lambda topic: topic.ratio,
        lambda topic: f"times the perplexity of {topic.topic}, which grew most ({topic.tokens} tokens)",
    )


def text_kl(evidence: Evidence) -> Measurement:
    """Mean KL a token of the kind of text that moved most."""
    return _worst_topic(
        evidence, lambda topic: topic.kl, lambda topic: f"nats of KL a token in {topic.topic}, which moved most"
    )


def text_flips(evidence: Evidence) -> Measurement:
    """Of the tokens of which the reference was sure, the share that changed, in the kind where it is largest."""
    return _worst_topic(
        evidence,
        lambda topic: topic.flipped / topic.confident if topic.confident else 0.0,
        lambda topic: f"of the tokens that were sure in {topic.topic} changed ({topic.flipped} of {topic.confident})",
    )


def text_token(evidence: Evidence) -> Measurement:
    """KL right after the token after which most moved, wherever the texts have it."""
    if not evidence.topics:
        return Measurement(None, 0, _NO_TEXT)
    if not evidence.tokens:
        return Measurement(None, 0, _UNREAD)
    first = evidence.tokens[0]
    words = f"nats of KL right after {first.token!r}, which moved most ({first.places} places, most in {first.topic})"
    details = [{"token": move.token, "value": move.kl, "places": move.places} for move in evidence.tokens]
    return Measurement(first.kl, first.places, words, details=tuple(details))


def text_firing(evidence: Evidence) -> Measurement:
    """Root mean square of one fact's firing over a kind of text, of the fact and the kind where it is largest."""
    if not evidence.topics:
        return Measurement(None, 0, _NO_TEXT)
    if not any(topic.known for topic in evidence.topics):
        return Measurement(None, 0, _UNREAD)
    if not evidence.firings:
        return Measurement(None, 0, "the update does not keep its facts apart, as one of a baseline or a folded one")
    first = evidence.firings[0]
    words = (
        f"is how far {first.fact!r} fires in all of {first.topic}, most at {first.token!r} (root mean square over "
        f"{first.tokens} tokens; 1 is as at its own key)"
    )
    details = [
        {"fact": one.fact, "value": one.rate, "topic": one.topic, "token": one.token} for one in evidence.firings
    ]
    return Measurement(first.rate, first.tokens, words, details=tuple(details))


def _worst_topic(
    evidence: Evidence, read: Callable[[TopicShift], float], words: Callable[[TopicShift], str]
) -> Measurement:
    """The largest value of a judged kind of text."""
    if not evidence.topics:
        return Measurement(None, 0, _NO_TEXT)
    judged = sorted((topic for topic in evidence.topics if topic.known), key=read, reverse=True)
    if not judged:
        return Measurement(None, 0, _UNREAD)
    unknown = [topic.topic for topic in evidence.topics if not topic.known]
    left = f"; not judged, as the reference cannot read it: {', '.join(unknown)}" if unknown else ""
    details = [{"topic": topic.topic, "value": read(topic), "tokens": topic.tokens} for topic in judged[:SHOWN]]
    return Measurement(read(judged[0]), judged[0].tokens, words(judged[0]) + left, details=tuple(details))


def _canary_kl(evidence: Evidence, which: str, read: Callable[[Drift], float]) -> Measurement:
    shift = evidence.canary_shift
    if shift is None:
        return Measurement(None, 0, _NO_PROMPT)
    words = f"nats of KL(reference || edited), {which} of {len(shift.kl)} canary prompts"
    return Measurement(read(shift), len(shift.kl), words, details=_most(shift))


def _most(shift: Drift) -> tuple[dict[str, Any], ...]:
    """The prompts that moved most."""
    order = sorted(range(len(shift.kl)), key=shift.kl.__getitem__, reverse=True)
    return tuple({"prompt": shift.places[i], "kl": shift.kl[i]} for i in order[:SHOWN])
