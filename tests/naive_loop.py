"""A layer loop without an engine: one prompt at a time, hooks of its own, weights written through their own parameters.

The oracle of end-to-end tests. Emendo only says which tokens a prompt has, where its subject ends, and what the
second moments are; which target values are searched is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from emendo.editing.plan import Plan
from emendo.models import EditableModel
from emendo.models.alignment import align_prompt
from emendo.requests import EditRequest
from emendo.statistics import MomentStore, obtain_for_method


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Equal up to a part of the largest entry."""
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=rtol * scale)


def apart(found: Tensor, other: Tensor) -> float:
    """‖found − other‖ / ‖other‖: how clearly a test can tell the two."""
    return float((found.double() - other.double()).norm() / other.double().norm())


class Naive:
    """One model and its contexts; columns, as the papers have them."""

    def __init__(self, lm: EditableModel, contexts: Sequence[str]) -> None:
        self.lm, self.contexts = lm, contexts

    def module(self, layer: int) -> torch.nn.Module:
        return self.lm.model.get_submodule(self.lm.module_name(layer))

    def at_subject(self, request: EditRequest, context: str, layer: int, what: str) -> Tensor:
        """One activation at the subject's last token: "key", "mlp_out" or "resid_post"."""
        prompt = align_prompt(self.lm, request, context)
        seen: list[Tensor] = []

        def hook(_: Any, args: Any, out: Any) -> None:
            found = args[0] if what == "key" else out[0] if isinstance(out, tuple) else out
            seen.append(found.detach().clone())  # a copy, since Falcon goes on to add to this tensor

        place = self.lm.blocks[layer] if what == "resid_post" else self.module(layer)
        handle = place.register_forward_hook(hook)
        with torch.no_grad():
            self.lm.model(input_ids=torch.tensor([prompt.ids]))
        handle.remove()
        return seen[0].view(len(prompt.ids), -1)[prompt.subject_last].double()  # OPT's MLP sees [batch × seq, ·]

    def keys(self, request: EditRequest, layer: int) -> Tensor:
        return torch.stack([self.at_subject(request, context, layer, "key") for context in self.contexts])

    def two_level(self, request: EditRequest, layer: int) -> Tensor:
        """MEMIT: the mean over {the plain prompt's key, the mean over sampled contexts}."""
        keys = self.keys(request, layer)
        return keys[0] if len(keys) == 1 else (keys[0] + keys[1:].mean(dim=0)) / 2

    def mean_keys(self, requests: Sequence[EditRequest], layer: int) -> Tensor:
        """Two-level keys [d_in, n]."""
        return torch.stack([self.two_level(request, layer) for request in requests], dim=1)

    def present(self, request: EditRequest, layer: int, site: str = "resid_post") -> Tensor:
        return self.at_subject(request, "{}", layer, site)

    def values(self, requests: Sequence[EditRequest], layer: int, site: str = "resid_post") -> Tensor:
        """Present values [d_model, n]."""
        return torch.stack([self.present(request, layer, site) for request in requests], dim=1)

    @contextmanager
    def pushed(self, request: EditRequest, layer: int, delta: Tensor, site: str = "resid_post") -> Iterator[None]:
        """δ is added at the subject's last token of the plain prompt."""
        at = align_prompt(self.lm, request).subject_last

        def hook(_: Any, args: Any, out: Any) -> Any:
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            hidden.view(-1, hidden.shape[-1])[at] += delta.to(hidden)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handle = (self.lm.blocks[layer] if site == "resid_post" else self.module(layer)).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def add(self, layer: int, delta: Tensor) -> None:
        weight = self.module(layer).weight.data  # type: ignore[union-attr, operator]
        weight += (delta.T if isinstance(self.module(layer), Conv1D) else delta).to(weight)

    def moment(self, layer: int, plan: Plan, store: MomentStore) -> Tensor:
        config = plan.method.config
        return obtain_for_method(self.lm, config.written_layers, config.moments, store=store)[0][layer]
