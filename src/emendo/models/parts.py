"""What a model is made of, while it is edited: the modules that it was wrapped with, each with weights of its own.

A checksum of the weights tells nothing of an activation that was exchanged, or of two layers with the same numbers that
share one memory from now on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from emendo.errors import UnsupportedModelError, WeightsChangedError
from emendo.models.decoder import DecoderView
from emendo.models.packed_weights import SidePath, is_packed, kind_of


class WrappedParts:
    """The modules of a decoder as they are now; its embeddings apart, which `resize_token_embeddings` exchanges.

    Args:
        lm: The model.
    """

    def __init__(self, lm: DecoderView) -> None:
        self._known = {name: (weakref.ref(module), _own_forward(name, module)) for name, module in _modules(lm)}

    def check(self, lm: DecoderView) -> None:
        """Refuse a model with other modules, or with two that share a weight.

        Raises:
            WeightsChangedError: A module is another one, or its `forward` is.
            UnsupportedModelError: See `refuse_shared_weights` and `refuse_computed_weights`.
        """
        now = dict(_modules(lm))
        for name in {**self._known, **now}:
            reference, forward = self._known.get(name, (None, None))
            module = now.get(name)
            same = module is not None and reference is not None and reference() is module
            if not same or _own_forward(name, module) is not forward:
                found = "gone" if module is None else f"a {type(module).__name__} that was not there"
                raise WeightsChangedError(
                    f"{name or 'the decoder'} of {lm.name!r} is {found} when the model was wrapped, or computes by "
                    "another forward; nothing was changed. Expected the modules that it was wrapped with: put them "
                    "back, or wrap the model as it is now (emendo.wrap(model, tokenizer)) and plan with a session of it"
                )
        refuse_shared_weights(lm)
        refuse_computed_weights(lm)


def _modules(lm: DecoderView) -> Iterator[tuple[str, nn.Module]]:
    """Every module of the decoder by each of its names, but embeddings.

    Where an edit stands beside a few-bit map, that map has the name, as it had before the edit.
    """
    ends = {id(lm.model.get_input_embeddings()), id(lm.model.get_output_embeddings())}
    sides: list[str] = []
    for name, module in lm.decoder.named_modules(remove_duplicate=False):
        if id(module) in ends or any(name.startswith(side) for side in sides):
            continue
        if isinstance(module, SidePath):
            sides.append(f"{name}.")
        yield name, module.base if isinstance(module, SidePath) else module


def _own_forward(name: str, module: Any) -> Any:
    """What somebody has put in the place of the class's own `forward`; on the decoder that is Emendo (`access`)."""
    return vars(module).get("forward") if name else None


def refuse_shared_weights(lm: DecoderView) -> None:
    """Refuse two names for one memory: what is written through one of them would be read through the other.

    Raises:
        UnsupportedModelError: Names both.
    """
    edited = {lm.parameter_name(layer) for layer in range(lm.n_layers)}
    places = sorted(
        (str(weight.device), *_bytes_of(weight), name)
        for name, weight in lm.model.named_parameters(remove_duplicate=False)
        if weight.numel() and not is_packed(weight)
    )
    last = ("", 0, 0, "")  # of those that begin earlier on this device, the one that reaches furthest
    for place in places:
        device, begin, end, name = place
        if device == last[0] and begin < last[2] and edited & {name, last[3]}:
            raise UnsupportedModelError(
                f"{last[3]} and {name} share one memory: an edit of one would change the other without a word, and "
                "edits of both would not add up. Expected a weight of its own in every edited module: copy it before "
                f"(module.weight = torch.nn.Parameter(module.weight.detach().clone())), or the module "
                "(copy.deepcopy(module)) where two blocks use the same"
            )
        if device != last[0] or end > last[2]:
            last = place


def _bytes_of(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of a tensor's elements, and the one after the last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def refuse_computed_weights(lm: DecoderView) -> None:
    """Refuse weights that every forward pass computes from others: what is written to them is lost at the next one.

    Raises:
        UnsupportedModelError: Names the module and what it computes its weight from.
    """
    for layer in range(lm.n_layers):
        module, name = lm.down_projection(layer), lm.module_name(layer)
        few_bits = isinstance(module, SidePath) or kind_of(module)
        if lm.mixture(layer) is not None or few_bits or "weight" in module._parameters:
            continue
        sources = ", ".join(part for part, _ in module.named_parameters() if part != "bias")
        raise UnsupportedModelError(
            f"the weight of {name} is computed anew in every forward pass (from {sources}), as under a "
            "parametrization, weight norm or a mask of pruning: what is written to it would be lost. Expected a "
            "parameter: torch.nn.utils.parametrize.remove_parametrizations(module, 'weight'), "
            "torch.nn.utils.remove_weight_norm(module) or torch.nn.utils.prune.remove(module, 'weight') makes it one"
        )
