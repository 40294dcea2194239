"""The rule for the edited layers of a model that has no published settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView

_DEPTHS = {"gpt2": (0.35, 0.36), "gpt_neox": (0.35, 0.23)}
_OTHER_DEPTHS = (0.17, 0.26)
"""Where the edited layers end, as parts of the depth: a single layer, several layers."""


def layers_by_depth(lm: DecoderView, at_most: int) -> tuple[tuple[int, ...], str]:
    """Layers for a model without a preset, and the rule in words.

    A single layer lies at 0.35 of the depth for GPT-2 and GPT-NeoX and at 0.17 for all other families, rounded to the
    nearest. Several consecutive ones, `at_most` of them, end at 0.36 (GPT-2), 0.23 (GPT-NeoX) or 0.26 of it, rounded
    down. A shallow model has fewer layers below that depth, and fewer are then written: above it the answer has been
    read off the subject already. Where the MLP runs beside the attention, the first layer is left out if there is
    another: its MLP has seen the last token of a name alone, so that an edit there is one of that token in every text.

    Source: the published settings. One layer: GPT2-XL 17 of 48, GPT-NeoX 15 of 44, GPT-J 5 of 28, Llama-2 5 of 32;
        several end at 17 of 48, 10 of 44, 8 of 28, 8 of 32. Shallow models: docs/lab/worlds.md.
    """
    single, several = _DEPTHS.get(lm.spec.model_type, _OTHER_DEPTHS)
    depth = single if at_most == 1 else several
    lowest = 1 if lm.spec.parallel and lm.n_layers > 1 else 0
    end = depth * lm.n_layers
    last = min(lm.n_layers - 1, max(lowest, round(end) if at_most == 1 else int(end)))
    first = max(lowest, last - at_most + 1)
    rule = f"rule for models without a preset: up to {at_most} layer(s) ending at {depth} of the depth"
    return tuple(range(first, last + 1)), rule
