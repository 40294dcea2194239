"""What single edits do, one by one: where they fire, and which tokens their writes promote."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Count, checked
from emendo.attribution.answer import check_fits, placed
from emendo.attribution.edits import EditSet
from emendo.models import EditableModel
from emendo.models.batch import TokenBatch, pack_by_tokens
from emendo.models.factored import factored, stopping
from emendo.models.hooks import StopForwardError
from emendo.progress import Watched, watching
from emendo.requests import Prompt

_TOKENS = 2048
"""Tokens of one forward pass."""

_AROUND = 8
"""Tokens shown on each side of a place where an edit fires."""


@checked
@torch.no_grad()
def firing(lm: EditableModel, edits: EditSet, batch: TokenBatch) -> Float[Tensor, "batch seq edits"]:
    """Firing of every edit at every token in the edited model, mean over the layers that the edit writes.

    1 is "as at its own key", 0 is "not at all"; padding is 0. Runs only up to the highest edited layer.

    Args:
        lm: The model without the edits.
        edits: The edits; rows of a whole update give NaN.
        batch: Texts.

    Raises:
        InputError: The model holds edits, or has not the layers that they write.
    """
    check_fits(lm, edits)
    strengths = torch.ones(len(batch.input_ids), len(edits.owner), device=lm.device)
    with (
        lm.isolated() as own,
        factored(own, placed(lm, edits), strengths) as written,
        suppress(StopForwardError),
        stopping(own, edits.layers[-1]),
    ):
        own.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
    rows = torch.stack([written.firing[layer].double().cpu() for layer in edits.layers])
    wrote = torch.stack([torch.from_numpy((edits.factors[layer][1] != 0).any(axis=1)) for layer in edits.layers])
    mean = rows.sum(dim=0) / wrote.sum(dim=0).clamp_min(1)
    found = edits.by_edit(mean) * batch.attention_mask.cpu()[..., None]
    return found.masked_fill(torch.tensor([edit.whole for edit in edits.edits]), float("nan"))


@checked
def strongest_firing(lm: EditableModel, edits: EditSet, texts: Sequence[Prompt]) -> Float[Tensor, "texts edits"]:
    """Largest firing of every edit over the tokens of each text or conversation."""
    sequences = [lm.encode_prompt(text) for text in texts]
    found = torch.zeros(len(texts), len(edits.edits), dtype=torch.float64)
    for group in pack_by_tokens([len(ids) for ids in sequences], _TOKENS):
        rows = firing(lm, edits, lm.batch([sequences[i] for i in group]))
        found[group] = rows.amax(dim=1)
    return found


@dataclass(frozen=True, order=True)
class Place:
    """A token of a text at which an edit fires.

    Attributes:
        firing: How far.
        before: Text in front of the token.
        token: The token.
        after: Text behind it.
    """

    firing: float
    before: str = field(compare=False)
    token: str = field(compare=False)
    after: str = field(compare=False)


@dataclass(frozen=True)
class Scan:
    """Where edits fire in a text.

    Attributes:
        tokens: Tokens read.
        places: Of every edit the places where it fires most, the strongest first.
        base_rate: Root mean square of every edit's firing over the text, ``[edits]``.
    """

    tokens: int
    places: tuple[tuple[Place, ...], ...]
    base_rate: Float[Tensor, " edits"]


@checked
def scan(
    lm: EditableModel,
    edits: EditSet,
    text: str,
    *,
    length: Count = 128,
    most: Count = 5,
    progress: Watched = None,
) -> Scan:
    """Read a text and note where every edit fires most.

    Args:
        lm: The model without the edits.
        edits: The edits.
        text: Any text; it is cut into pieces of `length` tokens.
        length: Tokens of a piece.
        most: Places kept for every edit.
        progress: Counts tokens.
    """
    progress = watching(progress)
    ids = lm.encode_bare(text)
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    heaps: list[list[Place]] = [[] for _ in edits.edits]
    total = torch.zeros(len(edits.edits), dtype=torch.float64)
    progress.start("scanning", len(ids))
    try:
        for group in _batches(pieces, max(1, _TOKENS // length)):
            rows = firing(lm, edits, lm.batch(group))
            total += rows.square().sum(dim=(0, 1))
            _keep(lm, heaps, group, rows, most)
            progress.advance(sum(map(len, group)))
    finally:
        progress.finish()
    places = tuple(tuple(sorted(heap, reverse=True)) for heap in heaps)
    return Scan(len(ids), places, (total / max(1, len(ids))).sqrt())


def _batches(pieces: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    for start in range(0, len(pieces), size):
        yield list(pieces[start : start + size])


def _keep(lm: EditableModel, heaps: list[list[Place]], group: Sequence[Sequence[int]], rows: Tensor, most: int) -> None:
    """Add the strongest places of a batch; the text around a place is decoded only for those that stay."""
    flat = torch.nan_to_num(rows, nan=float("-inf")).reshape(-1, rows.shape[-1])
    values, where = flat.topk(min(most, len(flat)), dim=0)
    width = rows.shape[1]
    for edit, heap in enumerate(heaps):
        for value, spot in zip(values[:, edit].tolist(), where[:, edit].tolist(), strict=True):
            row, t = divmod(spot, width)
            if t >= len(group[row]) or (len(heap) == most and value <= heap[0].firing):
                continue
            ids = group[row]
            texts = [lm.decode(part) for part in (ids[max(0, t - _AROUND) : t], [ids[t]], ids[t + 1 :][:_AROUND])]
            heapq.heappush(heap, Place(value, *texts))
            if len(heap) > most:
                heapq.heappop(heap)


@checked
@torch.no_grad()
def promoted(lm: EditableModel, edits: EditSet, *, most: Count = 5) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Tokens that every edit's write promotes and suppresses most, read by the unembedding.

    The sum of an edit's writes over its layers goes through the final norm and the unembedding as if nothing came
    between. Blocks above do come between, so this is a hint at what is written, not what the model will say.

    Args:
        lm: The model.
        edits: The edits.
        most: Tokens of each kind.

    Returns:
        Of every edit the promoted and the suppressed tokens, strongest first; none in families that norm the MLP's
        output, where a write is not what joins the stream.

    Source: logit lens; reading write vectors by the unembedding, arXiv 2203.14680.
    """
    if lm.spec.mlp_normed:
        return [((), ()) for _ in edits.edits]
    writes = sum(edits.factors[layer][1].astype(np.float64) for layer in edits.layers)
    assert isinstance(writes, np.ndarray)
    total = edits.by_edit(torch.from_numpy(writes).T)
    found = []
    for row in total.T:
        logits = lm.unembed(lm.finish(row.to(lm.device, lm.dtype)[None]))[0]
        count = min(most, len(logits))
        high, low = logits.topk(count).indices.tolist(), (-logits).topk(count).indices.tolist()
        found.append((tuple(lm.decode([i]) for i in high), tuple(lm.decode([i]) for i in low)))
    return found
