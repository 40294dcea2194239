"""Everything that was found about edits, as one JSON document that the page and the terminal are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from emendo.attribution.algebra import cross_firing, norm, singular_values, stable_rank

if TYPE_CHECKING:
    from emendo.attribution import Attribution, EditSet, Lens, Scan

SHOWN_VALUES = 8
"""Singular values of a layer that are listed."""


@dataclass(frozen=True)
class Probe:
    """How an edit fires on one prompt that belongs to it.

    Attributes:
        edit: Which.
        kind: ``"own"``, ``"paraphrase"`` or ``"neighbor"``.
        prompt: Text.
        own: Largest firing of the edit over the prompt's tokens.
        other: Largest firing of any other edit, and which; None where there is no other.
    """

    edit: int
    kind: str
    prompt: str
    own: float
    other: tuple[float, int] | None


@dataclass(frozen=True)
class Answer:
    """A prompt with an answer, and what every edit contributes.

    Attributes:
        prompt: Text.
        answer: Text.
        found: The contributions.
        left_out: Change of the answer's log-probability when the edits of `order` are left out one at a time.
        order: The edits that contribute most, the largest first.
        lens: The answer's first token read off every layer, without the edits and with them.
    """

    prompt: str
    answer: str
    found: Attribution
    left_out: tuple[float, ...]
    order: tuple[int, ...]
    lens: Lens


@dataclass(frozen=True)
class Seen:
    """What was found.

    Attributes:
        edits: The edits.
        sources: Where they come from.
        base: Identity of the model that they belong to, as their file records it.
        promoted: Of every edit promoted and suppressed tokens; None without a model.
        probes: Firing on the edits' own prompts and probes.
        answers: Attributed answers.
        scan: Where edits fire in a text; None where none was read.
        base_rates: Of every edit, how far it fires on preserved text at most (`base_rates`); None where the second
            moments of the model are not stored.
    """

    edits: EditSet
    sources: tuple[str, ...]
    base: dict[str, str]
    promoted: list[tuple[tuple[str, ...], tuple[str, ...]]] | None = None
    probes: tuple[Probe, ...] = ()
    answers: tuple[Answer, ...] = ()
    scan: Scan | None = None
    base_rates: np.ndarray | None = None


def document(seen: Seen) -> dict[str, Any]:
    """The document."""
    edits = seen.edits
    crossing = mean_crossing(edits)
    return {
        "format": "emendo.see",
        "version": 1,
        "sources": list(seen.sources),
        "base": dict(seen.base),
        "edits": [_edit(seen, number, crossing) for number in range(len(edits.edits))],
        "layers": [_layer(edits, layer) for layer in edits.layers],
        "cross_firing": None if crossing is None else crossing.tolist(),
        "probes": [
            {
                "edit": probe.edit,
                "kind": probe.kind,
                "prompt": probe.prompt,
                "firing": probe.own,
                "z": None if not (rate := _rate(seen, probe.edit)) else probe.own / rate,
                "other": None if probe.other is None else {"firing": probe.other[0], "edit": probe.other[1]},
            }
            for probe in seen.probes
        ],
        "answers": [_answer(answer, edits.layers) for answer in seen.answers],
        "scan": _scan(seen.scan),
    }


def mean_crossing(edits: EditSet) -> np.ndarray | None:
    """Firing of every edit at every other's key, mean over layers; None where keys are not known."""
    if edits.keys is None:
        return None
    found: np.ndarray = np.stack([cross_firing(edits, layer) for layer in edits.layers]).mean(axis=0)
    return found


def _edit(seen: Seen, number: int, crossing: np.ndarray | None) -> dict[str, Any]:
    edits = seen.edits
    edit, mine = edits.edits[number], edits.owner == number
    norms = {str(layer): norm(q[mine], r[mine]) for layer, (q, r) in edits.factors.items()}
    row: dict[str, Any] = {
        "number": number,
        "label": edit.label,
        "update": edit.update,
        "whole": edit.whole,
        "requests": [dict(request) for request in edit.requests],
        "norm": sum(value**2 for value in norms.values()) ** 0.5,
        "norms": norms,
        "disturbs": _worst(crossing, number),
        "base_rate": _rate(seen, number),
    }
    if seen.promoted is not None:
        row["promoted"], row["suppressed"] = (list(tokens) for tokens in seen.promoted[number])
    return row


def _rate(seen: Seen, number: int) -> float | None:
    """Base rate of an edit's firing; None where it is not known or the edit stands for a whole update."""
    if seen.base_rates is None or np.isnan(seen.base_rates[number]):
        return None
    return float(seen.base_rates[number])


def _worst(crossing: np.ndarray | None, number: int) -> dict[str, Any] | None:
    """The other edit at whose key this one fires most."""
    if crossing is None or len(crossing) < 2:
        return None
    row = crossing[number].copy()
    row[number] = 0
    other = int(np.abs(row).argmax())
    return {"edit": other, "firing": float(row[other])}


def _layer(edits: EditSet, layer: int) -> dict[str, Any]:
    values = singular_values(*edits.factors[layer])
    return {
        "layer": layer,
        "norm": float(np.sqrt(np.square(values).sum())),
        "stable_rank": stable_rank(values),
        "singular_values": values[:SHOWN_VALUES].tolist(),
    }


def _answer(answer: Answer, layers: Sequence[int]) -> dict[str, Any]:
    found = answer.found
    return {
        "prompt": answer.prompt,
        "answer": answer.answer,
        "before": found.before,
        "after": found.after,
        "change": found.after - found.before,
        "error": found.error,
        "by_edit": found.by_edit.tolist(),
        "by_token": [
            {"token": token, "contribution": value}
            for token, value in zip(found.tokens, found.parts.sum(dim=(0, 2)).tolist(), strict=True)
        ],
        "by_layer": dict(zip(map(str, layers), found.parts.sum(dim=(1, 2)).tolist(), strict=True)),
        "direct": None if found.direct is None else found.direct.tolist(),
        "lens": {
            "before": answer.lens.before.tolist(),
            "after": answer.lens.after.tolist(),
            "top_before": list(answer.lens.top_before),
            "top_after": list(answer.lens.top_after),
        },
        "left_out": [{"edit": e, "change": c} for e, c in zip(answer.order, answer.left_out, strict=True)],
    }


def _scan(scan: Scan | None) -> dict[str, Any] | None:
    if scan is None:
        return None
    return {
        "tokens": scan.tokens,
        "base_rate": [None if value != value else value for value in scan.base_rate.tolist()],
        "places": [
            [{"firing": p.firing, "before": p.before, "token": p.token, "after": p.after} for p in places]
            for places in scan.places
        ],
    }
