"""How far each single fact of an edit fires on ordinary text.

ΔW k = Σᵢ rᵢ (qᵢ · k): a fact acts where its dual key meets a key, by 1 at its own. A fact about a thing fires
where that thing is named. One whose key is a question mark or a full stop fires in every question or sentence. Among
fifty sound facts its harm is lost in theirs; how far it fires is not, as each fact has that number to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emendo.attribution import EditSet, edits_of
from emendo.gate.canaries import CanaryText
from emendo.models import EditableModel
from emendo.models.batch import pack_by_tokens
from emendo.updates.update import ModelUpdate

_TOKENS = 2048
"""Most tokens of one forward pass."""

_NUMBERS = 2**22
"""Most firings (tokens times rows of an update) that are held at a time, of each layer."""

_MOST = 5
"""Facts that are kept, those that fire most."""


@dataclass(frozen=True)
class FactFiring:
    """How far one fact fires on the kind of text where it fires most.

    Attributes:
        fact: Subject and target.
        rate: Root mean square of its firing over the tokens of the kind; 1 is as at its own key, at every token.
        topic: The kind.
        tokens: Of the kind.
        token: The token at which most of it is.
    """

    fact: str
    rate: float
    topic: str
    tokens: int
    token: str


@torch.no_grad()
def fact_firings(
    lm: EditableModel, updates: Sequence[ModelUpdate], texts: Sequence[CanaryText], kinds: Sequence[str]
) -> tuple[FactFiring, ...]:
    """The facts that fire most, first; none where no update keeps its facts apart (baselines, folded ones).

    Args:
        lm: The model with the updates in it.
        updates: What is judged.
        texts: What is read.
        kinds: Kinds of text that count.
    """
    if not any(update.layers for update in updates):
        return ()
    edits = edits_of(updates)
    single = [index for index, edit in enumerate(edits.edits) if not edit.whole]
    read = [(text.topic, tuple(text.encode(lm))) for text in texts if text.topic in kinds]
    if not single or not read:
        return ()
    squares: dict[str, Tensor] = {}  # of each kind: sum over its tokens, by edit
    at: dict[str, dict[int, Tensor]] = {}  # of each kind, the same by token
    counts: dict[str, int] = {}
    for (topic, ids), fired in _fired(lm, edits, read):
        squares[topic] = squares.get(topic, 0.0) + fired.sum(dim=0)
        counts[topic] = counts.get(topic, 0) + len(ids)
        by_token = at.setdefault(topic, {})
        for token, row in zip(ids, fired, strict=True):
            by_token[token] = by_token[token] + row if token in by_token else row
    found = []
    for index in single:
        rates = {topic: float(total[index] / counts[topic]) ** 0.5 for topic, total in squares.items()}
        worst = max(rates, key=rates.__getitem__)
        token = max(at[worst], key=lambda token: float(at[worst][token][index]))
        found.append(FactFiring(edits.edits[index].label, rates[worst], worst, counts[worst], lm.decode([token])))
    return tuple(sorted(found, key=lambda firing: -firing.rate)[:_MOST])


def _fired(
    lm: EditableModel, edits: EditSet, read: Sequence[tuple[str, tuple[int, ...]]]
) -> Iterator[tuple[tuple[str, tuple[int, ...]], Tensor]]:
    """Each text with the squared firing of every edit at its tokens, mean over the layers that the edit writes."""
    layers = edits.layers
    dual_keys = {layer: torch.from_numpy(q).to(lm.block_device(layer)) for layer, (q, _) in edits.factors.items()}
    wrote = sum(torch.from_numpy((r != 0).any(axis=1)).long() for _, r in edits.factors.values())
    assert isinstance(wrote, Tensor)
    budget = min(_TOKENS, max(1, _NUMBERS // len(edits.owner)))
    for group in pack_by_tokens([len(ids) for _, ids in read], budget):
        capture = lm.run(lm.batch([read[place][1] for place in group]), keys=layers, stacked=False)
        total = torch.zeros(())
        for layer, q in dual_keys.items():
            routed = capture.routed.get(layer)
            fired = capture.keys[layer].to(q) @ q.T if routed is None else routed.dot(q)
            total = total + fired.double().cpu()
        squared = edits.by_edit(total / wrote.clamp_min(1)).square()
        for row, place in enumerate(group):
            yield read[place], squared[row, : len(read[place][1])]
