"""Where the parts of an unmodified Hugging Face decoder are, and the weights that are edited.

`DecoderView` owns every question of layout (which family, Linear or Conv1D): callers see `[d_out, d_in]` weights. It
runs nothing; `models.runnable` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from emendo.arguments import check_width, checked
from emendo.errors import InputError, LayerError, UnsupportedModelError
from emendo.io.printable import well_formed
from emendo.models.access import ModelAccess, access_to
from emendo.models.architecture import ArchitectureSpec, resolve_architecture
from emendo.models.checksums import BaseWeights
from emendo.models.edited_map import EditedMap, Original, PlainMap
from emendo.models.experts import is_mixture
from emendo.models.identity import COMPILED
from emendo.models.mixture import ExpertsMap, Mixture
from emendo.models.packed_weights import SidePath, kind_of, rounds_inputs
from emendo.models.quantised_map import QuantisedMap
from emendo.shapes import Weight
from emendo.solve.numerics import pinned


class DecoderView:
    """The parts of a causal language model, by what they are rather than by a family's names.

    Args:
        model: A transformers causal LM of a supported family; what torch.compile(model) made of one stands for it.
        tokenizer: Its fast tokenizer.
        name: How reports and files name the model.

    Raises:
        UnsupportedModelError: It is no model, or of a family that cannot be edited.
    """

    OBTAINED_BY = "emendo.load(NAME) or, of a transformers model and its tokenizer, emendo.wrap(model, tokenizer)"

    @checked
    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        self.model: Any = plain_model(model)
        self.tokenizer = tokenizer
        self.spec: ArchitectureSpec = resolve_architecture(getattr(self.model, "config", None))
        # Kept in every file about the model; the name of a folder can hold bytes that no file of text can.
        self.name = well_formed(name or getattr(self.model.config, "_name_or_path", "") or self.spec.model_type)
        self._base = BaseWeights()
        self._shared: Self | None = None  # the model itself, of an isolated one
        self._own_layers: frozenset[int] = frozenset()
        self._parts: Any = None  # what it was wrapped with, once it has been looked at

    # ---- facts -------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """Configuration of the text decoder, also where a multimodal model is around it."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def is_isolated(self) -> bool:
        """Whether this is what `isolated` gives."""
        return self._shared is not None

    @property
    def access(self) -> ModelAccess:
        """Who reads and who writes the weights, in all threads and for every wrapper of this model."""
        return access_to(self.decoder) if self._shared is None else self._shared.access

    @property
    def mlp_scale(self) -> float:
        """Factor with which the MLP's output joins the residual stream."""
        return 1.0 if self.spec.mlp_scale is None else float(getattr(self.config, self.spec.mlp_scale))

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.edited_map(0).shape[0]

    @checked
    def d_in(self, layer: int) -> int:
        """Inner width of a layer's MLP: the dimension of its keys; of a mixture, of all experts together."""
        return self.edited_map(layer).shape[1]

    @checked
    def mixture(self, layer: int) -> Mixture | None:
        """The sizes of a layer's mixture of experts; None of a dense layer."""
        edited = None if self.spec.experts is None else self.edited_map(layer)
        if not isinstance(edited, ExpertsMap):
            return None
        chosen = self.config.num_experts_per_tok
        return Mixture(edited.experts, edited.width, int(chosen if isinstance(chosen, int) else chosen[layer]))

    @checked
    def directions(self, layer: int) -> int:
        """How many tokens give a layer as many keys as its keys have directions: d_in, or `Mixture.directions`."""
        mixture = self.mixture(layer)
        return self.d_in(layer) if mixture is None else mixture.directions

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embedding."""
        return self.model.get_input_embeddings().weight.device

    @checked
    def block_device(self, layer: int) -> torch.device:
        """Where a block computes, which differs between the blocks of a sharded model."""
        return self.edited_map(layer).device

    @checked
    def rotary_type(self, layer: int) -> str | None:
        """Which kind of position embedding a block takes, in a model with several."""
        return str(self.config.layer_types[layer]) if self.spec.rotary_by_layer_type else None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the edited maps compute in."""
        return self.edited_map(0).dtype

    @property
    def rounds_inputs(self) -> bool:
        """Whether its maps round what enters them to 8 bits: then two ways to compute the same differ visibly."""
        return any(rounds_inputs(module) for module in self.blocks[0].modules())

    @property
    def vocab_size(self) -> int:
        """Number of rows of the unembedding."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @checked
    def check_layers(self, layers: Sequence[int]) -> list[int]:
        """Sorted `layers`, each an existing block and named once.

        Raises:
            LayerError: A layer is out of range, repeated, or none is given.
        """
        bad = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if bad or not layers or len(set(layers)) != len(layers):
            what = f"out of range: {bad}" if bad else f"empty or repeated: {list(layers)}"
            raise LayerError(
                f"layers {what}; {self.name!r} has layers 0 to {self.n_layers - 1}, each named once (--layers)"
            )
        return sorted(layers)

    @property
    def revision(self) -> str | None:
        """Commit on the hub that the model was loaded from; None for a folder."""
        found = getattr(self.model.config, "_commit_hash", None)
        return None if found is None else str(found)

    # ---- modules -----------------------------------------------------------------------------------------

    @property
    def decoder(self) -> nn.Module:
        """The module that holds the blocks."""
        return self.model.get_submodule(self.spec.decoder)

    @checked
    def keeping(self, cache: Any) -> dict[str, Any]:
        """The arguments with which the decoder reads a cache of keys and values and adds to it.

        transformers 5.24 calls it ``cache``, and from 5.40 on takes no other name.
        """
        names = inspect.signature(self.decoder.forward).parameters
        return {"cache" if "cache" in names else "past_key_values": cache, "use_cache": True}

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, lowest first."""
        return self.decoder.get_submodule(self.spec.blocks)  # type: ignore[return-value]

    @checked
    def module_name(self, layer: int) -> str:
        """Dotted name of the module of a layer's edited linear map."""
        self.check_layers([layer])
        return f"{self.spec.decoder}.{self.spec.blocks}.{layer}.{self._edited_path(layer)}"

    @checked
    def parameter_name(self, layer: int) -> str:
        """Dotted name of a layer's edited weight."""
        return f"{self.module_name(layer)}.{'weight' if self.mixture(layer) is None else 'down_proj'}"

    @checked
    def down_projection(self, layer: int) -> Any:
        """The module of a layer's edited linear map, as the model has it; of a mixture all experts."""
        self.check_layers([layer])
        return self.blocks[layer].get_submodule(self._edited_path(layer))

    @checked
    def dense_mlp(self, layer: int) -> nn.Module | None:
        """The module around a layer's edited linear map; None where it stands in the block itself or is a mixture."""
        self.check_layers([layer])
        path = self._edited_path(layer)
        owner = "" if path == self.spec.experts else path.rpartition(".")[0]
        return self.blocks[layer].get_submodule(owner) if owner else None

    @checked
    def edited_map(self, layer: int) -> EditedMap:
        """How a layer's edited weight is read and written, whatever module keeps it."""
        self.check_layers([layer])
        if self._edited_path(layer) == self.spec.experts:
            return ExpertsMap(self.down_projection(layer))
        path, _, name = self.spec.down_projection.rpartition(".")
        owner = self.blocks[layer].get_submodule(path)
        module = getattr(owner, name)
        if isinstance(module, SidePath) or kind_of(module):
            return QuantisedMap(owner, name, self.model.get_input_embeddings().weight.dtype)
        return PlainMap(module)

    def _edited_path(self, layer: int) -> str:
        """Where in its block a layer's edited map is: the experts, where this block has some."""
        if self.spec.experts is not None:
            owner, _, name = self.spec.experts.rpartition(".")
            if is_mixture(getattr(self.blocks[layer].get_submodule(owner), name, None)):
                return self.spec.experts
        return self.spec.down_projection

    @checked
    def attention_output(self, layer: int) -> nn.Module:
        """The module whose output is what a layer's attention adds to the residual stream."""
        self.check_layers([layer])
        return self.blocks[layer].get_submodule(self.spec.attention_output or self.spec.attention)

    @checked
    def stores_transposed(self, layer: int) -> bool:
        """Whether a layer's module keeps its weight as ``[d_in, d_out]`` (GPT-2's Conv1D)."""
        return self.edited_map(layer).transposed

    @checked
    def weight(self, layer: int) -> Weight:
        """A layer's edited weight as ``[d_out, d_in]``; a view where the module keeps plain numbers."""
        return self.edited_map(layer).read()

    @checked
    def write(self, layer: int, weight: Weight) -> None:
        """Overwrite a layer's weight in place, cast once to the model's dtype.

        Raises:
            InputError: The shape is not the layer's (a smaller one would be repeated silently), or the layer is not
                this model's own.
        """
        if self._shared is not None and layer not in self._own_layers:
            raise InputError(
                f"layer {layer} of an isolated model shares its weight with the model itself; expected a layer of its "
                f"own: isolated([{layer}])"
            )
        own = self.edited_map(layer)
        if own.shape != weight.shape:
            raise InputError(
                f"{self.module_name(layer)} takes a weight [d_out, d_in] of shape {own.shape}, found "
                f"{tuple(weight.shape)}; pass it as lm.weight({layer}) gives it"
            )
        own.write(weight)

    def put_back(self, layer: int, original: Original) -> None:
        """Give a layer back what it was before it was first written, bit for bit."""
        self.edited_map(layer).put_back(original)

    def base_checksums(self) -> Mapping[str, str]:
        """A checksum of every parameter of the unedited model (`models.checksums`)."""
        return self._base.checksums(self.model) if self._shared is None else self._shared.base_checksums()

    def touched_parameters(self) -> set[str]:
        """Names of parameters that torch says were replaced or written since the unedited model was identified."""
        return self._base.touched(self.model)

    def check_parts(self) -> None:
        """Refuse a model whose modules were exchanged since it was wrapped, or share a weight now.

        Raises:
            WeightsChangedError: A module is another one.
            UnsupportedModelError: Two modules share a weight.
        """
        if self._parts is not None and self._shared is None:
            self._parts.check(self)

    # ---- the ends of the residual stream -------------------------------------------------------------------

    @checked
    def finish(self, stream: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Hidden states ready for `unembed`, from the residual stream after the last block; differentiable.

        Raises:
            InputError: They are of another width.
        """
        check_width("stream", stream, self.d_model)
        for name in self.spec.final:
            # A configuration can leave a module out (OPT's projection): it is None then, which is no submodule.
            module: Any = getattr(self.decoder, name)
            if module is not None:
                stream = module(stream)
        return stream

    @checked
    @pinned(gradients=False)
    def unembed(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """The model's own logits, in float32 (or float64 for a float64 model); differentiable in `hidden`.

        Raises:
            InputError: Hidden states are of another width.
        """
        return self.unembed_in_search(hidden)

    @checked
    def unembed_in_search(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """The same under the caller's autocast: a search may choose products of bfloat16 (`target.precision`)."""
        head, spec = self.model.get_output_embeddings(), self.spec
        check_width("hidden", hidden, head.weight.shape[1])
        logits: Tensor = head(hidden.to(head.weight)).to(hidden.device)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if spec.logit_scale is not None:
            logits = logits * getattr(self.config, spec.logit_scale)
        if spec.logit_divisor is not None:
            logits = logits / getattr(self.config, spec.logit_divisor)
        if spec.logit_softcap is not None and (cap := getattr(self.config, spec.logit_softcap)) is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits


def plain_model(model: Any) -> Any:
    """The model itself, of which a compiled one is only another way to call it.

    Raises:
        UnsupportedModelError: It is spread over copies on several devices, or no model at all.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UnsupportedModelError(
            f"found a {type(model).__name__}, which holds copies of a model; expected the model itself: pass "
            "model.module"
        )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"found a {type(model).__name__} for the model; expected a transformers causal LM and its tokenizer, as "
            "emendo.wrap(model, tokenizer) takes them, or the name of one, which emendo.load(NAME) takes"
        )
    return getattr(model, COMPILED, model)
