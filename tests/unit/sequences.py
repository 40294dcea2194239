"""Sequences of edits on a linear stand-in for a model, in float64, with plain inverses: keys and targets are fixed.

What edit j's prompts hold at a layer is c + Σ W_m k_j^m over the layers up to it (or W k of that layer alone, for
targets that are MLP outputs), and every formula is the papers' own, line by line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from emendo.solve import PreparedLayer, Preservation, prepare
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate

BASE = {"name": "linear", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}
FINGERPRINT = "f" * 64
D_OUT, D_IN = 6, 12


@dataclass
class Edit:
    """One edit: its keys at every layer of the world, its absolute targets by layer, and its settings.

    With `averaged` keys, those set the directions of the dual keys and `keys` are where the edit must hold (ROME).
    """

    keys: dict[int, Tensor]
    targets: dict[int, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    averaged: dict[int, Tensor] | None = None


@dataclass
class World:
    """Weights and second moments of some layers, and edits to be made in order."""

    weights: dict[int, Tensor]
    moments: dict[int, Tensor]
    edits: list[Edit]

    def metrics(self, preservation: Preservation) -> dict[int, PreparedLayer]:
        return {layer: prepare(moment, preservation) for layer, moment in self.moments.items()}


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def world(sizes: Sequence[int], layers: Sequence[int] = (0,), seed: int = 0, **settings: Any) -> World:
    """A world with one edit of each size; keys of different edits overlap, as those of real prompts do."""
    g = torch.Generator().manual_seed(seed)
    weights = {layer: random(g, D_OUT, D_IN) for layer in layers}
    moments = {}
    for layer in layers:
        sample = random(g, 5 * D_IN, D_IN) * torch.linspace(0.3, 2, D_IN, dtype=torch.float64)
        moments[layer] = sample.T @ sample / len(sample)
    common = {layer: random(g, 1, D_IN) for layer in layers}
    edits = [
        Edit(
            {layer: random(g, n, D_IN) + common[layer] for layer in layers},
            {layer: 3 * random(g, n, D_OUT) for layer in layers},
            {"layers": list(layers), **settings},
        )
        for n in sizes
    ]
    return World(weights, moments, edits)


def settings_of(edit: Edit) -> dict[str, Any]:
    defaults = {
        "batching": "joint",
        "distribution": "even",
        "target.site": "resid_post",
        "keys.constraint": "mean",
        "memorization.s": 0.0,
        "memorization.equality_alone": False,
        "history.weight": 0.0,
        "post.kind": "none",
        "preservation.weight": 1.0,
        "preservation.ridge": 0.0,
        "preservation.null_space": "off",
        "preservation.threshold": 0.02,
    }
    return {**defaults, **edit.settings}


def preservation_of(settings: dict[str, Any]) -> Preservation:
    return Preservation(
        **{name.removeprefix("preservation."): v for name, v in settings.items() if name.startswith("preservation.")}
    )


def inverse_metric(moment: Tensor, settings: dict[str, Any], past: Tensor) -> Tensor:
    """A⁻¹, or U A_U⁻¹ Uᵀ, with the history, by plain inversion."""
    A = settings["preservation.weight"] * moment + settings["preservation.ridge"] * torch.eye(D_IN).double()
    A = A + settings["history.weight"] * past.T @ past
    if settings["preservation.null_space"] == "off":
        return torch.linalg.inv(A)
    values, vectors = torch.linalg.eigh(moment)
    U = vectors[:, values < settings["preservation.threshold"]]
    return U @ torch.linalg.inv(U.T @ A @ U) @ U.T


def made(world: World, order: Sequence[int], dtype: torch.dtype = torch.float64) -> tuple[ModelUpdate, ...]:
    """Make the edits of `order`, one after another, each on what the ones before left."""
    weights = {layer: weight.clone() for layer, weight in world.weights.items()}
    past = {layer: torch.zeros(0, D_IN, dtype=torch.float64) for layer in weights}
    updates: list[ModelUpdate] = []
    for number in order:
        edit = world.edits[number]
        settings = settings_of(edit)
        n = len(next(iter(edit.keys.values())))
        alone = settings["batching"] == "one_by_one"
        rows: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in settings["layers"]}
        for batch in [[row] for row in range(n)] if alone else [list(range(n))]:
            for layer, R, Q in _solved(world, edit, batch, settings, weights, past):
                rows[layer].append((R, Q))
                weights[layer] = weights[layer] + R.T @ Q
            if alone and settings["history.weight"]:
                for layer in rows:
                    past[layer] = torch.cat([past[layer], edit.keys[layer][batch]])
        for layer in rows:
            if not (alone and settings["history.weight"]):
                past[layer] = torch.cat([past[layer], edit.keys[layer]])
        parts = tuple(
            LayerUpdate(
                layer,
                f"layers.{layer}.down",
                torch.cat([R for R, _ in pairs]).to(dtype),
                torch.cat([Q for _, Q in pairs]).to(dtype),
                edit.keys[layer].to(dtype),
            )
            for layer, pairs in sorted(rows.items())
        )
        info = {
            "requests": [{"id": "", "prompt": "{} is", "subject": f"{number}-{i}", "target": "x"} for i in range(n)],
            "method": {"name": "test", "settings": settings},
            "moments": {"fingerprint": FINGERPRINT},
            "layers": [],
        }
        updates.append(ModelUpdate(parts, BASE, Predecessors.of(update.id for update in updates), info))
    return tuple(updates)


def _solved(
    world: World,
    edit: Edit,
    batch: list[int],
    settings: dict[str, Any],
    weights: dict[int, Tensor],
    past: dict[int, Tensor],
) -> list[tuple[int, Tensor, Tensor]]:
    """The factors of one batch, layer by layer, ascending."""
    layers, n = settings["layers"], len(batch)
    s = 0.0 if n == 1 and settings["memorization.equality_alone"] else settings["memorization.s"]
    weights = dict(weights)
    inverse = {layer: inverse_metric(world.moments[layer], settings, past[layer]) for layer in layers}
    K = {layer: edit.keys[layer][batch] for layer in edit.keys}
    D = {m: K[m] @ inverse[m] @ K[m].T + s * torch.eye(n, dtype=torch.float64) for m in layers}
    found = []
    written = (layers[0], layers[-1]) if settings["distribution"] == "ends" else tuple(layers)
    for position, layer in enumerate(dict.fromkeys(written)):
        own = settings["distribution"] in ("ends", "replay")
        aim = layer if own else layers[-1]
        entering = [m for m in edit.keys if m <= aim] if settings["target.site"] == "resid_post" else [aim]
        missing = edit.targets[aim][batch] - sum(K[m] @ weights[m].T for m in entering)
        rest = len(layers) - position
        if settings["distribution"] == "optimal":
            R = D[layer] @ torch.linalg.inv(sum(D[m] for m in layers[position:])) @ missing
        else:
            R = missing * {"even": 1 / rest, "sqrt": rest**-0.5}.get(settings["distribution"], 1.0)
        directions = (edit.averaged or edit.keys)[layer][batch] @ inverse[layer]
        Q = torch.linalg.inv(directions @ K[layer].T + s * torch.eye(n).double()) @ directions
        weights[layer] = weights[layer] + R.T @ Q
        found.append((layer, R, Q))
    return found
