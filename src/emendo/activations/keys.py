"""Keys: the inputs of the edited down-projection at the subject's last token, averaged over contexts.

Only tokens up to that one are run, and only the layers up to the one asked for: nothing later can matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.activations.targets import Site
from emendo.models import ModelAdapter, pack_by_tokens
from emendo.requests import EditRequest
from emendo.shapes import Keys
from emendo.text import align_prompt

TOKEN_BUDGET = 8192
"""Padded tokens of one forward pass: bounds memory, changes no result beyond rounding."""


@dataclass(frozen=True)
class KeySettings:
    """Which keys an edit is stored under.

    Args:
        average: Weights of the contexts in the mean key: ``"two_level"`` gives the plain prompt one half and shares
            the other half among the sampled contexts, ``"flat"`` weighs all alike.
        constraint: At which key the edit must hold: the ``"mean"`` key, or the ``"plain"`` prompt's own (the mixed
            form of the original ROME code).
        residual: Where the present value is measured: at the ``"plain"`` prompt, or as the ``"mean"`` over contexts
            with the weights of the key (which keeps ``(W + Δ) k = v*`` for the mean key).

    Source: public code of ROME and MEMIT for the averages; r-ROME (arXiv 2403.07175) for one key throughout.
    """

    average: Literal["two_level", "flat"] = "two_level"
    constraint: Literal["mean", "plain"] = "mean"
    residual: Literal["plain", "mean"] = "plain"


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
    """Weight of each context, the plain prompt first; they sum to 1."""
    if average == "flat" or n_contexts == 1:
        return torch.full((n_contexts,), 1 / n_contexts)
    return torch.tensor([0.5] + [0.5 / (n_contexts - 1)] * (n_contexts - 1))


def extract_keys(
    adapter: ModelAdapter,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    average: str,
) -> EditKeys:
    """Keys of every request at `layer`, in the model's present state.

    Args:
        adapter: The model.
        requests: The facts to write.
        contexts: Templates, the plain prompt first.
        layer: Where the keys are read.
        average: As in `KeySettings`.
    """
    rows = _subject_rows(adapter, requests, contexts)
    keys = _last_token(adapter, rows, "keys", layer).view(len(requests), len(contexts), -1)
    weights = context_weights(len(contexts), average).to(keys)
    return EditKeys(torch.einsum("c,ncd->nd", weights, keys), keys[:, 0])


def current_values(
    adapter: ModelAdapter,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    site: Site,
    settings: KeySettings,
) -> Float[Tensor, "n d_model"]:
    """What the model holds at `site` of `layer` at the subjects' last tokens, in its present state."""
    if settings.residual == "plain":
        contexts = contexts[:1]
    rows = _subject_rows(adapter, requests, contexts)
    values = _last_token(adapter, rows, "resid" if site == "resid_post" else "mlp_out", layer)
    weights = context_weights(len(contexts), settings.average).to(values)
    return torch.einsum("c,ncd->nd", weights, values.view(len(requests), len(contexts), -1))


def _subject_rows(
    adapter: ModelAdapter, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> list[tuple[int, ...]]:
    """Each request in each context as tokens, cut after the subject."""
    rows = []
    for request in requests:
        for context in contexts:
            aligned = align_prompt(adapter, request, context)
            rows.append(aligned.ids[: aligned.subject_last + 1])
    return rows


def _last_token(adapter: ModelAdapter, rows: Sequence[Sequence[int]], what: str, layer: int) -> Float[Tensor, "rows d"]:
    """One activation at the last token of each row, in float32 or better; equal rows are run once."""
    distinct = list(dict.fromkeys(map(tuple, rows)))
    found: dict[tuple[int, ...], Tensor] = {}
    for group in pack_by_tokens([len(ids) for ids in distinct], TOKEN_BUDGET):
        sequences = [distinct[index] for index in group]
        batch = adapter.batch(sequences)
        capture = adapter.run(batch, **{what: [layer]})
        values = getattr(capture, what)[layer]
        last = values[torch.arange(len(sequences), device=values.device), batch.lengths - 1]
        found.update(zip(sequences, last.to(torch.promote_types(last.dtype, torch.float32)), strict=True))
    return torch.stack([found[tuple(ids)] for ids in rows])
