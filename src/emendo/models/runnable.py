"""Running a model as it is: in modules that nobody else sees, with whatever weights are asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self

import torch

from emendo.arguments import checked
from emendo.models.batch import TokenBatch
from emendo.models.contents import WeightContents
from emendo.models.hooks import Capture, StopForwardError, recording
from emendo.models.isolation import check_parameters, isolated_modules
from emendo.models.text import TextModel
from emendo.shapes import Hidden, Weight
from emendo.solve.numerics import pinned


class RunnableModel(TextModel):
    """A model whose forward passes leave it as it is, with the weights that somebody has written into it.

    Args:
        model: As `DecoderView` takes it.
        tokenizer: Its fast tokenizer.
        name: How reports and files name the model.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        super().__init__(model, tokenizer, name)
        self.contents = WeightContents(self)
        """What has been written into the weights, and the way back."""
        self._isolated_edits = False

    @property
    def holds_edits(self) -> bool:
        """Whether the weights are not those of the base: a session holds updates, or `edited` is open."""
        return self._isolated_edits or self.contents.now.edited

    @checked
    def base_weight(self, layer: int) -> Weight:
        """A layer's weight in the unedited model as ``[d_out, d_in]``, not to be changed."""
        held = self.contents
        return held.originals[layer].weight if layer in held.now.weights else self.weight(layer)

    @checked
    @contextmanager
    def edited(self, weights: Mapping[int, Weight]) -> Iterator[None]:
        """The model with other weights in some layers, restored bit for bit on exit, also after an error.

        Everybody who uses the model sees them; `isolated` is the way to try weights unseen.

        Raises:
            InputError: A weight is not of its layer's shape.
            WeightsChangedError: Somebody else has changed the weights meanwhile; they are left as they are.
        """
        before = self.contents.now
        own = {layer: weight.detach().clone() for layer, weight in weights.items()}
        inside = replace(before, owner=own, weights={**before.weights, **own}, edited=True)
        with self.contents.holding(inside):
            yield

    @checked
    @contextmanager
    def isolated(
        self, written: Mapping[int, Weight] | Sequence[int] = (), *, edited: bool | None = None
    ) -> Iterator[Self]:
        """This model in modules that nobody else sees, in evaluation mode and without parameter gradients.

        Hooks, attention functions and weights in it are the caller's own business; other threads may run the model
        meanwhile, and get what they always get. They do not write its weights before the context is left. It is
        itself where it is isolated already and nothing is to be written.

        Args:
            written: Layers that may be written in it, which then have weights of their own; with weights, written.
            edited: What `holds_edits` says there; None: what it says here.

        Raises:
            UnsupportedModelError: A parameter cannot be shared.
        """
        if self._shared is not None and not written and edited is None:
            yield self
            return
        check_parameters(self.model)
        if self._shared is None:
            self.contents.settle()
        with self.access.reading(), pinned():
            edits = self.holds_edits if edited is None else edited
            layers = self.check_layers(list(written)) if written else []
            parameters = [part for layer in layers for part in self.edited_map(layer).written_in_place]
            own = copy.copy(self)
            own.model = isolated_modules(self.model, parameters)
            own.contents = WeightContents(own)
            own._shared, own._isolated_edits, own._own_layers = self._shared or self, edits, frozenset(layers)
            if isinstance(written, Mapping):
                for layer, weight in written.items():
                    own.write(layer, weight)
            yield own

    @checked
    def run(
        self,
        batch: TokenBatch,
        *,
        keys: Sequence[int] = (),
        mlp_out: Sequence[int] = (),
        resid: Sequence[int] = (),
        stacked: bool = True,
    ) -> Capture:
        """One forward pass that records activations and stops above the highest layer asked for.

        Args:
            batch: Right-padded tokens.
            keys: Layers whose down-projection inputs to record.
            mlp_out: Layers whose down-projection outputs to record.
            resid: Layers whose block outputs to record.
            stacked: Give the keys of mixtures of experts at every token as one long key each, and not as they are
                routed alone: that is E times as wide as one expert's.
        """
        top = self.check_layers(sorted({*keys, *mlp_out, *resid}))[-1]
        capture = Capture()
        stopped = suppress(StopForwardError)
        with self.isolated() as own, torch.no_grad(), stopped, recording(own, capture, keys, mlp_out, resid, stop=top):
            own.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
        if stacked:
            capture.stack()
        return capture

    @checked
    def final_hidden(self, batch: TokenBatch) -> Hidden:
        """Hidden states after the final norm, ready for `unembed`; no logits are computed."""
        with self.isolated() as own, torch.no_grad():
            out = own.decoder(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask.long(),
                use_cache=False,
                return_dict=True,  # a configuration may ask for tuples
            )
        return out.last_hidden_state.to(self.device)
