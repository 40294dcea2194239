"""Keys: the inputs of the edited down-projection at the subject's last token, averaged over contexts.

Only tokens up to that one are run, and only the layers up to the one asked for: nothing later can matter. A second
reading, after a layer was written, starts at that layer (`models.resumed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.io.heap import give_back_freed_memory
from emendo.methods.settings import KeySettings, Site
from emendo.models import EditableModel, TokenBatch, adding, pack_by_tokens
from emendo.models.alignment import align_prompt
from emendo.models.resumed import ResumedPass
from emendo.requests import SLOT, AnyContext, EditRequest
from emendo.shapes import Keys

_What = Literal["keys", "resid", "mlp_out"]
_CAPTURED: dict[Site, _What] = {"resid_post": "resid", "mlp_out": "mlp_out"}

TOKEN_BUDGET = 8192
"""Padded tokens of one forward pass: bounds memory, changes no result beyond rounding."""

REQUESTS_AT_ONCE = 256
"""Requests whose prompts are packed into passes together; their activations are held until they are averaged."""

RESUMED_BYTES = 2**29
"""Most that is held of what enters a layer, for the next reading to start there; above it every pass is whole."""

_ByLayer: TypeAlias = dict[int, Float[Tensor, "n d"]]


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


class EditActivations:
    """Keys and present values of one batch of edits, read again as its layers are written.

    Prompts are aligned once. Between two readings only layers from `resume` on may change, so the blocks below are
    not run again, where what enters them fits in memory.

    Args:
        lm: The model; isolated, where anything is resumed.
        requests: The facts to write.
        contexts: Templates, the plain prompt first.
        site: Where values are read.
        settings: How keys and values are averaged over contexts.
    """

    def __init__(
        self,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[AnyContext],
        site: Site = "resid_post",
        settings: KeySettings | None = None,
    ) -> None:
        self._site, settings = site, settings or KeySettings()
        aligned = _aligned(lm, requests, contexts)
        self._keys = _Averaged(lm, aligned, context_weights(len(contexts), settings.average))
        plain = settings.residual == "plain" and len(contexts) > 1
        self._values = (
            _Averaged(lm, [rows[:1] for rows in aligned], context_weights(1, "flat")) if plain else self._keys
        )

    def keys(self, layers: Sequence[int], *, resume: int | None = None) -> dict[int, EditKeys]:
        """Keys of every request at some layers, in the model's present state.

        Args:
            layers: Where they are read.
            resume: The lowest layer that changes before the next reading of keys; None: any may.
        """
        means, plain = self._keys.read("keys", layers, resume)
        return {layer: EditKeys(means[layer], plain[layer]) for layer in layers}

    def values(self, layer: int, *, resume: int | None = None) -> Float[Tensor, "n d_model"]:
        """What the model holds at `layer` at the subjects' last tokens, in its present state.

        Args:
            layer: Where it is read.
            resume: The lowest layer that changes before the next reading of values; None: any may.
        """
        means, _ = self._values.read(_CAPTURED[self._site], [layer], resume)
        return means[layer]


def extract_keys(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[AnyContext],
    layers: Sequence[int],
    average: Literal["two_level", "flat"],
) -> dict[int, EditKeys]:
    """Keys of every request at some layers, in the model's present state, in one pass.

    Args:
        lm: The model.
        requests: The facts to write.
        contexts: Templates, the plain prompt first.
        layers: Where the keys are read.
        average: As in `KeySettings`.
    """
    return EditActivations(lm, requests, contexts, settings=KeySettings(average=average)).keys(layers)


def current_values(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[AnyContext],
    layer: int,
    site: Site,
    settings: KeySettings,
) -> Float[Tensor, "n d_model"]:
    """What the model holds at `site` of `layer` at the subjects' last tokens, in its present state."""
    return EditActivations(lm, requests, contexts, site, settings).values(layer)


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
    rows = _Rows(lm, [ids for (ids,) in _aligned(lm, requests, [SLOT])])
    return rows.last(lm, _CAPTURED[site], layers, added=_Added(layer, site, delta))


def _aligned(
    lm: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[AnyContext]
) -> list[list[tuple[int, ...]]]:
    """Each request in each context as tokens, cut after the subject."""
    aligned = [[align_prompt(lm, request, context) for context in contexts] for request in requests]
    return [[prompt.ids[: prompt.subject_last + 1] for prompt in prompts] for prompts in aligned]


class _Averaged:
    """Activations at the last token of every request's prompts, averaged over its contexts.

    Requests are taken in blocks, so that what is held at once does not grow with their number.
    """

    def __init__(self, lm: EditableModel, aligned: list[list[tuple[int, ...]]], weights: Tensor) -> None:
        self._lm, self._weights, self._blocks = lm, weights, []
        for first in range(0, len(aligned), REQUESTS_AT_ONCE):
            rows = [ids for prompts in aligned[first : first + REQUESTS_AT_ONCE] for ids in prompts]
            place = {ids: at for at, ids in enumerate(dict.fromkeys(rows))}  # equal rows are run once
            self._blocks.append((_Rows(lm, list(place)), [place[ids] for ids in rows]))
        entering = sum(rows.tokens for rows, _ in self._blocks) * lm.d_model * lm.dtype.itemsize
        self._can_resume = entering <= RESUMED_BYTES

    def read(self, what: _What, layers: Sequence[int], resume: int | None) -> tuple[_ByLayer, _ByLayer]:
        """The averages over contexts, and the plain prompts' own, by layer, in float32 or better."""
        resume = resume if self._can_resume else None
        means: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        plain: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for rows, order in self._blocks:
            for layer, values in rows.last(self._lm, what, layers, resume=resume).items():
                each = values[order].view(-1, len(self._weights), values.shape[-1])
                means[layer].append(torch.einsum("c,ncd->nd", self._weights.to(each), each))
                plain[layer].append(each[:, 0].clone())  # a view would hold every context's
            if len(self._blocks) > 1:
                give_back_freed_memory()
        return _joined(means), _joined(plain)


def _joined(parts: dict[int, list[Tensor]]) -> _ByLayer:
    return {layer: found[0] if len(found) == 1 else torch.cat(found) for layer, found in parts.items()}


class _Rows:
    """Token sequences in batches of bounded size, run up to their last tokens."""

    def __init__(self, lm: EditableModel, rows: Sequence[tuple[int, ...]]) -> None:
        self._groups = pack_by_tokens([len(ids) for ids in rows], TOKEN_BUDGET)
        self._passes = [ResumedPass(lm.batch([rows[row] for row in group])) for group in self._groups]
        self._n = len(rows)

    @property
    def tokens(self) -> int:
        """Padded tokens of all batches."""
        return sum(each.batch.input_ids.numel() for each in self._passes)

    def last(
        self,
        lm: EditableModel,
        what: _What,
        layers: Sequence[int],
        *,
        resume: int | None = None,
        added: _Added | None = None,
    ) -> dict[int, Float[Tensor, "rows d"]]:
        """The activation at the last token of each row, with a vector of its own added there at one layer, if any."""
        found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * self._n for layer in layers}
        with lm.isolated() as own:
            for group, each in zip(self._groups, self._passes, strict=True):
                with nullcontext() if added is None else added.to(own, each.batch, group):
                    capture = each.run(own, **{what: list(layers)}, resume=resume)
                here, last = torch.arange(len(group)), each.batch.lengths - 1
                for layer in layers:
                    if what == "keys":
                        rows = capture.keys_at(layer, here, last)
                    else:
                        values = getattr(capture, what)[layer]
                        rows = values[here.to(values.device), last.to(values.device)]
                    for row, value in zip(group, rows.to(torch.promote_types(rows.dtype, torch.float32)), strict=True):
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
        shape = (*batch.input_ids.shape, lm.d_model)
        shift = torch.zeros(shape, dtype=lm.dtype, device=lm.block_device(self.layer))
        last = (batch.lengths - 1).to(shift.device)
        shift[torch.arange(len(group), device=shift.device), last] = self.vectors[list(group)].to(shift)
        return adding(lm, self.layer, **{"block" if self.site == "resid_post" else "mlp": shift})
