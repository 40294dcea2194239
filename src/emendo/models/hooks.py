"""Hooks on an unmodified model: what a forward pass holds, and vectors added inside it.

They live for one context and are gone after it, also after an error. Put them on an isolated model: others run the
modules of the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from emendo.models.decoder import DecoderView
from emendo.models.experts import RoutedKeys, recording_experts


@dataclass
class Capture:
    """Activations of one forward pass, by layer.

    Attributes:
        keys: Inputs of the down-projections, each ``[batch, seq, d_in]``.
        routed: The same of mixtures of experts, as the tokens are routed.
        mlp_out: Outputs of the down-projections, each ``[batch, seq, d_model]``.
        resid: Outputs of whole blocks (the residual stream), each ``[batch, seq, d_model]``.
        entering: What enters whole blocks (the residual stream below them), each ``[batch, seq, d_model]``.
        attention_out: What attention adds to the residual stream, each ``[batch, seq, d_model]``.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    routed: dict[int, RoutedKeys] = field(default_factory=dict)
    mlp_out: dict[int, Tensor] = field(default_factory=dict)
    resid: dict[int, Tensor] = field(default_factory=dict)
    entering: dict[int, Tensor] = field(default_factory=dict)
    attention_out: dict[int, Tensor] = field(default_factory=dict)

    def keys_at(self, layer: int, rows: Tensor, columns: Tensor) -> Tensor:
        """The keys of some tokens, ``[n, d_in]``; of a mixture stacked, and those of no other token."""
        if (routed := self.routed.get(layer)) is not None:
            return routed[rows.to(routed.device), columns.to(routed.device)].stacked()
        keys = self.keys[layer]
        return keys[rows.to(keys.device), columns.to(keys.device)]

    def stack(self) -> None:
        """Give mixtures their stacked keys beside the routed ones: E times as wide as one expert's."""
        self.keys |= {layer: routed.stacked() for layer, routed in self.routed.items()}


class StopForwardError(Exception):
    """Ends a forward pass above the highest layer that anyone asked for."""


@contextmanager
def recording(
    lm: DecoderView,
    capture: Capture,
    keys: Sequence[int] = (),
    mlp_out: Sequence[int] = (),
    resid: Sequence[int] = (),
    *,
    entering: Sequence[int] = (),
    attention_out: Sequence[int] = (),
    stop: int | None = None,
) -> Iterator[None]:
    """Hooks that fill `capture` during any forward pass inside the context; `stop` ends it after that block."""
    handles: list[Any] = []

    def key_hook(layer: int) -> Any:
        return lambda module, args: capture.keys.__setitem__(layer, args[0].detach())

    def keep_routed(layer: int, keys: RoutedKeys) -> None:
        capture.routed[layer] = keys.detached()

    def out_hook(layer: int) -> Any:
        # A copy: Falcon adds its attention's output onto this very tensor.
        return lambda module, args, out: capture.mlp_out.__setitem__(layer, out.detach().clone())

    def block_hook(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            stream = block_output(out)
            for found in (capture.keys, capture.mlp_out):
                if layer in found:  # OPT lets its MLP see [batch × seq, ·], and mixtures their experts
                    found[layer] = found[layer].reshape(*stream.shape[:-1], -1)
            if layer in capture.routed:
                capture.routed[layer] = capture.routed[layer].shaped(*stream.shape[:-1])
            if layer in resid:
                capture.resid[layer] = stream.detach()
            if layer == stop:
                raise StopForwardError

        return hook

    def entering_hook(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            capture.entering[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    def attention_hook(layer: int) -> Any:
        return lambda module, args, out: capture.attention_out.__setitem__(layer, block_output(out).detach())

    try:
        for layer in entering:
            handles.append(lm.blocks[layer].register_forward_pre_hook(entering_hook(layer), with_kwargs=True))
        for layer in attention_out:
            handles.append(lm.attention_output(layer).register_forward_hook(attention_hook(layer)))
        sinks = {}
        for layer in keys:
            if lm.mixture(layer) is None:
                handles.append(lm.down_projection(layer).register_forward_pre_hook(key_hook(layer)))
            else:
                sinks[lm.down_projection(layer)] = partial(keep_routed, layer)
        for layer in mlp_out:
            handles.append(lm.down_projection(layer).register_forward_hook(out_hook(layer)))
        for layer in {*keys, *mlp_out, *resid, *([] if stop is None else [stop])}:
            handles.append(lm.blocks[layer].register_forward_hook(block_hook(layer)))
        with recording_experts(sinks):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adding(
    lm: DecoderView,
    layer: int,
    *,
    mlp: Tensor | None = None,
    attention: Tensor | None = None,
    block: Tensor | None = None,
) -> Iterator[None]:
    """Vectors are added to outputs inside one block while the context lasts; differentiable in them.

    Args:
        lm: The model.
        layer: The block.
        mlp: Added to the down-projection's output, of its shape up to leading ones.
        attention: Added to attention's own output, likewise.
        block: Added to the block's own output, likewise.
    """

    def hook(added: Tensor) -> Any:
        def add(module: nn.Module, args: Any, out: Any) -> Any:
            hidden = block_output(out)
            hidden = hidden + added.view(hidden.shape)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return add

    places = (
        (lm.down_projection(layer), mlp),
        (lm.attention_output(layer), attention),
        (lm.blocks[layer], block),
    )
    handles = [module.register_forward_hook(hook(added)) for module, added in places if added is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def block_output(out: Any) -> Tensor:
    """The hidden states of a block's return value, which is a tensor or a tuple that starts with one."""
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden
