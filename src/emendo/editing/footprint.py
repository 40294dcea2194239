"""What an edit would take on a model: memory by what it is for, and arithmetic, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from emendo.arguments import Size, checked
from emendo.methods import MethodConfig
from emendo.models.decoder import DecoderView
from emendo.solve.distribution import searched_layers

SUFFIX_TOKENS = 25.5
"""Tokens a fact whose blocks are repeated in a search step: measured on 24 CounterFact facts in six contexts."""

_DOUBLE, _SINGLE = 8, 4


@dataclass(frozen=True)
class Footprint:
    """What a plan of some facts takes.

    Attributes:
        memory: Bytes, by what they are for; without the activations of a search step.
        moments_flop: Arithmetic of collecting the second moments, once for model and layers.
        search_flop: Arithmetic of all searches, if none stops early.
    """

    memory: Mapping[str, int]
    moments_flop: float
    search_flop: float

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return sum(self.memory.values())


@checked
def footprint(lm: DecoderView, config: MethodConfig, edits: Size) -> Footprint:
    """The memory and the arithmetic of one plan.

    Args:
        lm: The model, or its outline.
        config: A method with the layers that it writes.
        edits: Facts that are planned together.
    """
    size = torch.empty(0, dtype=lm.dtype).element_size()
    precise = max(size, _SINGLE)
    layers = list(config.written_layers)
    square = sum(_moment_numbers(lm, layer) for layer in layers)
    edited = sum(lm.d_in(layer) * lm.d_model for layer in layers)
    rows = sum(edits * (lm.d_in(layer) + lm.d_in(layer) + lm.d_model) for layer in layers)
    memory = {
        "the model's weights": weight_bytes(lm),
        f"second moments of {len(layers)} layer(s), float64": square * _DOUBLE,
        "their factors, float64": square * _DOUBLE,
        # Originals, and a trial copy while a plan is made; the sums before rounding, at the start and now.
        "edited weights: originals, trial copies, exact sums": edited * (2 * size + 3 * precise),
        f"keys, dual keys and residuals of {edits} fact(s)": rows * _SINGLE,
    }
    # A product of a token with a weight is a multiplication and an addition; backward is twice forward.
    per_block = _block_parameters(lm)
    tokens = max(map(lm.directions, layers)) * config.moments.multiple
    searched = sum(lm.n_layers - 1 - layer for layer in searched_layers(config.distribution, config.layers))
    steps = config.target.steps * SUFFIX_TOKENS * edits
    return Footprint(memory, 2 * per_block * (max(layers) + 1) * tokens, 6 * per_block * searched * steps)


@checked
def weight_bytes(lm: DecoderView) -> int:
    """Bytes of all parameters, a shared one once."""
    parts = {id(part): part for part in lm.model.parameters()}
    return sum(part.numel() * part.element_size() for part in parts.values())


def _moment_numbers(lm: DecoderView, layer: int) -> int:
    """Entries of a layer's C: one block an expert of a mixture."""
    mixture = lm.mixture(layer)
    return lm.d_in(layer) ** 2 if mixture is None else mixture.experts * mixture.width**2


def _block_parameters(lm: DecoderView) -> float:
    """Weights that a token meets in a block, on average; of experts those that it is sent to."""
    met = 0.0
    for layer, block in enumerate(lm.blocks):
        met += sum(part.numel() for part in block.parameters())
        if (mixture := lm.mixture(layer)) is not None:
            experts = sum(part.numel() for part in lm.down_projection(layer).parameters())
            met -= experts * (1 - mixture.chosen / mixture.experts)
    return met / lm.n_layers
