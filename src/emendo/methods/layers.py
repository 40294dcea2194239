"""The rule for the edited layers of a model that has no published settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView

_DEPTHS = {"gpt2": (0.36, 0.36), "gpt_neox": (0.35, 0.23)}
_OTHER_DEPTHS = (0.18, 0.26)
"""Where the edited layers end, as parts of the depth: a single layer, several layers."""


def layers_by_depth(lm: DecoderView, span: int) -> tuple[tuple[int, ...], str]:
    """Layers for a model without a preset, and the rule in words.

    At most `span` consecutive layers. They end at 0.36 of the depth for GPT-2 whatever the span, and for GPT-NeoX at
    0.35 (one layer) or 0.23 (several); for all other families at 0.18 (one) or 0.26 (several), always rounded down. A
    shallow model has fewer layers below that depth, and fewer are then written: above it the answer has been read off
    the subject already. Where the MLP runs beside the attention, the first layer is left out if another remains: its
    MLP has seen the last token of a name alone, so that an edit there is one of that token in every text.

    Source: the published settings. One layer: GPT2-XL 17 of 48, GPT-NeoX 15 of 44, GPT-J 5 of 28, Llama-2 5 of 32;
        several end at 17 of 48, 10 of 44, 8 of 28, 8 of 32. Shallow models: docs/lab/worlds.md.
    """
    single, several = _DEPTHS.get(lm.spec.model_type, _OTHER_DEPTHS)
    depth = single if span == 1 else several
    lowest = 1 if lm.spec.parallel and lm.n_layers > 1 else 0
    last = max(lowest, int(depth * lm.n_layers))
    first = max(lowest, last - span + 1)
    rule = f"rule for models without a preset: up to {span} layer(s) ending at {depth} of the depth"
    return tuple(range(first, last + 1)), rule
