"""Keys: the inputs of the edited down-projection at the subject's last token, averaged over contexts.

Only tokens up to that one are run, and only the layers up to the one asked for: nothing later can matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.methods.settings import KeySettings, Site
from emendo.models import EditableModel, TokenBatch, adding, pack_by_tokens
from emendo.models.alignment import align_prompt
from emendo.requests import SLOT, EditRequest
from emendo.shapes import Keys

_What = Literal["keys", "resid", "mlp_out"]
_CAPTURED: dict[Site, _What] = {"resid_post": "resid", "mlp_out": "mlp_out"}

TOKEN_BUDGET = 8192
"""Padded tokens of one forward pass: bounds memory, changes no result beyond rounding."""


@dataclass(frozen=True)
class EditKeys:
    """Keys of a batch of requests at one layer.

    Attributes:
        mean: Averaged over contexts, ``[n, d_in]``.
        plain: Of the plain prompts, ``[n, d_in]``.
    """

    mean: Keys
    plain: Keys


def context_weights(n_contexts: int, average: str) -> Float[Tensor, " contexts"]:
    """Weight of each context in float64, the plain prompt first; they sum to 1."""
    if average == "flat" or n_contexts == 1:
        return torch.full((n_contexts,), 1 / n_contexts, dtype=torch.float64)
    return torch.tensor([0.5] + [0.5 / (n_contexts - 1)] * (n_contexts - 1), dtype=torch.float64)


def extract_keys(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layers: Sequence[int],
    average: str,
) -> dict[int, EditKeys]:
    """Keys of every request at some layers, in the model's present state, in one pass.

    Args:
        lm: The model.
        requests: The facts to write.
        contexts: Templates, the plain prompt first.
        layers: Where the keys are read.
        average: As in `KeySettings`.
    """
    rows = _subject_rows(lm, requests, contexts)
    weights = context_weights(len(contexts), average)
    found = {}
    for layer, values in _last_token(lm, rows, "keys", layers).items():
        keys = values.view(len(requests), len(contexts), -1)
        found[layer] = EditKeys(torch.einsum("c,ncd->nd", weights.to(keys), keys), keys[:, 0])
    return found


def current_values(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    site: Site,
    settings: KeySettings,
) -> Float[Tensor, "n d_model"]:
    """What the model holds at `site` of `layer` at the subjects' last tokens, in its present state."""
    if settings.residual == "plain":
        contexts = contexts[:1]
    rows = _subject_rows(lm, requests, contexts)
    values = _last_token(lm, rows, _CAPTURED[site], [layer])[layer]
    weights = context_weights(len(contexts), settings.average).to(values)
    return torch.einsum("c,ncd->nd", weights, values.view(len(requests), len(contexts), -1))


def forward_values(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    delta: Float[Tensor, "n d_model"],
    site: Site,
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "n d_model"]]:
    """What later layers hold at the subjects' last tokens when δ has been added at `layer`: a forward replay.

    Args:
        lm: The model.
        requests: The facts to write, in their plain prompts.
        layer: Where δ is added.
        delta: What the target search found.
        site: What δ was measured against, and what is read.
        layers: Where to read, above `layer`.
    """
    rows = _subject_rows(lm, requests, [SLOT])
    return _run(lm, rows, _CAPTURED[site], layers, _Added(layer, site, delta))


def _subject_rows(lm: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> list[tuple[int, ...]]:
    """Each request in each context as tokens, cut after the subject."""
    rows = []
    for request in requests:
        for context in contexts:
            aligned = align_prompt(lm, request, context)
            rows.append(aligned.ids[: aligned.subject_last + 1])
    return rows


def _last_token(
    lm: EditableModel, rows: Sequence[tuple[int, ...]], what: _What, layers: Sequence[int]
) -> dict[int, Float[Tensor, "rows d"]]:
    """One activation of some layers at the last token of each row, in float32 or better; equal rows are run once."""
    place = {ids: at for at, ids in enumerate(dict.fromkeys(rows))}
    order = [place[ids] for ids in rows]
    return {layer: values[order] for layer, values in _run(lm, list(place), what, layers).items()}


def _run(
    lm: EditableModel,
    rows: Sequence[tuple[int, ...]],
    what: _What,
    layers: Sequence[int],
    added: _Added | None = None,
) -> dict[int, Float[Tensor, "rows d"]]:
    """The activation at the last token of each row, with a vector of its own added there at one layer, if any."""
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    with lm.isolated() as own:
        for group in pack_by_tokens([len(ids) for ids in rows], TOKEN_BUDGET):
            batch = own.batch([rows[row] for row in group])
            with nullcontext() if added is None else added.to(own, batch, group):
                capture = own.run(batch, **{what: list(layers)})
            for layer, values in getattr(capture, what).items():
                last = values[torch.arange(len(group), device=values.device), (batch.lengths - 1).to(values.device)]
                for row, value in zip(group, last.to(torch.promote_types(last.dtype, torch.float32)), strict=True):
                    found[layer][row] = value
    return {layer: torch.stack(values) for layer, values in found.items()}


@dataclass(frozen=True)
class _Added:
    """A vector for each row, added at one layer at the row's last token."""

    layer: int
    site: Site
    vectors: Float[Tensor, "rows d_model"]

    def to(self, lm: EditableModel, batch: TokenBatch, group: Sequence[int]) -> AbstractContextManager[None]:
        """The context in which the vectors of some rows are added to a batch of them."""
        shift = lm.weight(self.layer).new_zeros(*batch.input_ids.shape, lm.d_model)
        last = (batch.lengths - 1).to(shift.device)
        shift[torch.arange(len(group), device=shift.device), last] = self.vectors[list(group)].to(shift)
        return adding(lm, self.layer, **{"block" if self.site == "resid_post" else "mlp": shift})
