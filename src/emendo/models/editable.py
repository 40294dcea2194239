"""One view over an unmodified Hugging Face decoder: its weights, its activations, its text.

`EditableModel` owns every question of layout (Linear or Conv1D), of what a block returns (tensor or tuple) and of
the state that a model happens to be in (training mode, `requires_grad`): callers see `[d_out, d_in]` weights,
`[batch, seq, ·]` activations and a model that is as they left it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from emendo.arguments import Size, TokenId, check_width, checked
from emendo.errors import InputError, LayerError
from emendo.io.printable import well_formed
from emendo.models.access import ModelAccess, access_to
from emendo.models.architecture import ArchitectureSpec, resolve_architecture
from emendo.models.batch import TokenBatch
from emendo.models.checks import check_model, check_parameters, plain_model
from emendo.models.checksums import BaseWeights
from emendo.models.contents import WeightContents
from emendo.models.generation import greedy_continuations
from emendo.models.hooks import Capture, StopForwardError, recording
from emendo.models.identity import config_record, config_sha256, tokenizer_sha256
from emendo.models.isolation import isolated_modules
from emendo.models.limits import check_ids, check_length, known_tokens, longest_text
from emendo.shapes import Hidden, Weight


class EditableModel:
    """A causal language model as editing sees it.

    Args:
        model: A transformers causal LM of a supported family; what torch.compile(model) made of one stands for it.
        tokenizer: Its fast tokenizer.
        name: How reports and files name the model.

    Raises:
        UnsupportedModelError: The family, the weights or the tokenizer cannot be edited; says why.
        SelfCheckError: A captured key times the weight does not give the captured MLP output.
        NumericalError: What the model computes is not finite.
    """

    OBTAINED_BY = "emendo.load(NAME) or, of a transformers model and its tokenizer, emendo.wrap(model, tokenizer)"

    @checked
    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        self.model: Any = plain_model(model)
        self.tokenizer = tokenizer
        self.spec: ArchitectureSpec = resolve_architecture(getattr(self.model, "config", None))
        # Kept in every file about the model; the name of a folder can hold bytes that no file of text can.
        self.name = well_formed(name or getattr(self.model.config, "_name_or_path", "") or self.spec.model_type)
        self.contents = WeightContents(self)
        """What has been written into the weights, and the way back."""
        self._base = BaseWeights()
        self._tokenizer_digest: str | None = None
        self._shared: EditableModel | None = None  # the model itself, of an isolated one
        self._isolated_edits = False
        self._own_layers: frozenset[int] = frozenset()
        check_model(self)

    # ---- facts -------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """Configuration of the text decoder, also where a multimodal model is around it."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def holds_edits(self) -> bool:
        """Whether the weights are not those of the base: a session holds updates, or `edited` is open."""
        return self._isolated_edits or self.contents.now.edited

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
        return int(self.weight(0).shape[0])

    @checked
    def d_in(self, layer: int) -> int:
        """Inner width of a layer's MLP: the dimension of its keys."""
        return int(self.weight(layer).shape[1])

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embedding."""
        return self.model.get_input_embeddings().weight.device

    @checked
    def block_device(self, layer: int) -> torch.device:
        """Where a block computes, which differs between the blocks of a sharded model."""
        return self.down_projection(layer).weight.device

    @checked
    def rotary_type(self, layer: int) -> str | None:
        """Which kind of position embedding a block takes, in a model with several."""
        return str(self.config.layer_types[layer]) if self.spec.rotary_by_layer_type else None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the edited weights."""
        return self.down_projection(0).weight.dtype

    @property
    def vocab_size(self) -> int:
        """Number of rows of the unembedding."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens, that the model has positions for and computes as it does any shorter one."""
        return longest_text(self)

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

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, lowest first."""
        return self.decoder.get_submodule(self.spec.blocks)  # type: ignore[return-value]

    @checked
    def module_name(self, layer: int) -> str:
        """Dotted name of a layer's edited linear map."""
        self.check_layers([layer])
        return f"{self.spec.decoder}.{self.spec.blocks}.{layer}.{self.spec.down_projection}"

    @checked
    def parameter_name(self, layer: int) -> str:
        """Dotted name of a layer's edited weight."""
        return f"{self.module_name(layer)}.weight"

    @checked
    def down_projection(self, layer: int) -> Any:
        """A layer's edited linear map, as the model has it."""
        self.check_layers([layer])
        return self.blocks[layer].get_submodule(self.spec.down_projection)

    @checked
    def attention_output(self, layer: int) -> nn.Module:
        """The module whose output is what a layer's attention adds to the residual stream."""
        self.check_layers([layer])
        return self.blocks[layer].get_submodule(self.spec.attention_output or self.spec.attention)

    @checked
    def stores_transposed(self, layer: int) -> bool:
        """Whether a layer's module keeps its weight as ``[d_in, d_out]`` (GPT-2's Conv1D)."""
        return isinstance(self.down_projection(layer), Conv1D)

    @checked
    def weight(self, layer: int) -> Weight:
        """A layer's edited weight as ``[d_out, d_in]``, a view whatever the module's layout."""
        self.check_layers([layer])
        weight = self.down_projection(layer).weight.detach()
        return weight.T if self.stores_transposed(layer) else weight

    @checked
    def base_weight(self, layer: int) -> Weight:
        """A layer's weight in the unedited model as ``[d_out, d_in]``, not to be changed."""
        held = self.contents
        return held.originals[layer] if layer in held.now.weights else self.weight(layer)

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
        own = self.weight(layer)
        if own.shape != weight.shape:
            raise InputError(
                f"{self.module_name(layer)} takes a weight [d_out, d_in] of shape {tuple(own.shape)}, found "
                f"{tuple(weight.shape)}; pass it as lm.weight({layer}) gives it"
            )
        own.copy_(weight)

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
    ) -> Iterator[EditableModel]:
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
        with self.access.reading():
            edits = self.holds_edits if edited is None else edited
            layers = self.check_layers(list(written)) if written else []
            own = copy.copy(self)
            own.model = isolated_modules(self.model, [self.down_projection(layer).weight for layer in layers])
            own.contents = WeightContents(own)
            own._shared, own._isolated_edits, own._own_layers = self._shared or self, edits, frozenset(layers)
            if isinstance(written, Mapping):
                for layer, weight in written.items():
                    own.write(layer, weight)
            yield own

    # ---- running -----------------------------------------------------------------------------------------

    @checked
    def run(
        self,
        batch: TokenBatch,
        *,
        keys: Sequence[int] = (),
        mlp_out: Sequence[int] = (),
        resid: Sequence[int] = (),
    ) -> Capture:
        """One forward pass that records activations and stops above the highest layer asked for.

        Args:
            batch: Right-padded tokens.
            keys: Layers whose down-projection inputs to record.
            mlp_out: Layers whose down-projection outputs to record.
            resid: Layers whose block outputs to record.
        """
        top = self.check_layers(sorted({*keys, *mlp_out, *resid}))[-1]
        capture = Capture()
        stopped = suppress(StopForwardError)
        with self.isolated() as own, torch.no_grad(), stopped, recording(own, capture, keys, mlp_out, resid, stop=top):
            own.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
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
    def unembed(self, hidden: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """The model's own logits, in float32 (or float64 for a float64 model); differentiable in `hidden`.

        Raises:
            InputError: Hidden states are of another width.
        """
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

    # ---- text --------------------------------------------------------------------------------------------

    @checked
    def encode(self, text: str) -> list[int]:
        """Token ids as the model expects them: its BOS if it has one, never a trailing EOS."""
        return self.encode_with_offsets(text)[0]

    @checked
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the character span of each; special tokens that are not in the text span nothing."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        ids = list(encoded["input_ids"])
        offsets = [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        while ids and ids[-1] == self.tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
            ids, offsets = ids[:-1], offsets[:-1]
        if not ids:
            raise InputError(f"the tokenizer turns {text!r} into no tokens; expected text")
        check_ids(self, ids)
        return ids, offsets

    @checked
    def encode_bare(self, text: str) -> list[int]:
        """Token ids of `text` without any special token."""
        ids = list(self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        check_ids(self, ids)
        return ids

    @checked
    def encode_chat(self, message: str) -> list[int]:
        """Token ids of one user message in the model's chat template, up to where the answer begins.

        Raises:
            InputError: The tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {self.name!r} has no chat template, so it cannot ask with one; expected "
                "a model tuned for chat. Ask with the raw prompt (chat=False) or load a chat model (--model)"
            )
        conversation = [{"role": "user", "content": message}]
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return self.encode_bare(str(text))  # a template writes the special tokens itself

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self.tokenizer.chat_template)

    @checked
    def encode_messages(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a whole conversation in the model's chat template.

        Args:
            messages: (role, content) of each turn.

        Raises:
            InputError: The tokenizer has no chat template, or its template refuses the conversation.
        """
        if not self.has_chat_template:
            raise InputError(f"the tokenizer of {self.name!r} has no chat template; expected a model tuned for chat")
        if not messages:
            raise InputError("there is no message; expected one or more (role, content) (messages=)")
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self.tokenizer.apply_chat_template(conversation, tokenize=False)
        except Exception as error:  # a template is a program of the model's authors, and may raise anything
            raise InputError(
                f"the chat template of {self.name!r} refuses the conversation that begins with "
                f"{messages[0][1][:60]!r}: {error}; expected turns in an order that the template takes"
            ) from error
        return self.encode_bare(str(text))

    @checked
    def decode(self, ids: Sequence[TokenId]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @checked
    def decode_after(self, before: Sequence[TokenId], ids: Sequence[TokenId]) -> str:
        """Text that token ids add to those before them.

        Some tokenizers drop the space of a text's first word, which here is not the first.
        """
        lead, whole = self.decode(before), self.decode([*before, *ids])
        return whole[len(lead) :] if whole.startswith(lead) else self.decode(ids)

    @property
    def pad_id(self) -> int:
        """An id to fill padding with; it is always masked, so any that the model has a row for does."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if self.knows(candidate):
                return int(candidate)
        return 0

    @checked
    def knows(self, token: int | None) -> bool:
        """Whether the model has rows for a token of the tokenizer, which may have more than the model."""
        return token is not None and 0 <= token < known_tokens(self)

    @checked
    def batch(self, sequences: Sequence[Sequence[int]]) -> TokenBatch:
        """Token sequences as a right-padded batch on the model's device.

        Raises:
            InputError: A sequence is longer than the model takes, or has a token that its embedding does not have.
        """
        check_length(self, max((len(ids) for ids in sequences), default=0))
        check_ids(self, [token for ids in sequences for token in ids])
        return TokenBatch.pad(sequences, self.pad_id, self.device)

    @checked
    def generate(self, prompt: str, max_new_tokens: Size = 32) -> str:
        """Greedy continuation of a raw prompt, without the prompt; it ends where the model's positions end."""
        return self.generate_many([prompt], max_new_tokens)[0]

    @checked
    def generate_many(self, prompts: Sequence[str], max_new_tokens: Size = 32) -> list[str]:
        """Greedy continuations of raw prompts, in batches of similar length.

        Args:
            prompts: Texts to continue.
            max_new_tokens: Most tokens to add to each; a continuation ends earlier at an EOS or at the last position.
        """
        return greedy_continuations(self, prompts, max_new_tokens)

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end a continuation."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        found = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        return {int(token) for token in found if token is not None}

    # ---- identity ----------------------------------------------------------------------------------------

    def weights_digest(self) -> str:
        """SHA-256 over all parameters (name, dtype, shape, bytes) of the unedited model.

        Computed when first asked for, and again where the weights have changed since and hold no edits.
        """
        if self._shared is not None:
            return self._shared.weights_digest()
        return self._base.sha256(self.model, edited=self.holds_edits)

    def base_checksums(self) -> Mapping[str, str]:
        """A checksum of every parameter of the unedited model (`models.checksums`)."""
        return self._base.checksums(self.model) if self._shared is None else self._shared.base_checksums()

    def accept_weights(self) -> None:
        """Take the weights as they are now for those of the unedited model; what was written is forgotten."""
        self.contents.forget()
        self._base = BaseWeights()

    def tokenizer_digest(self) -> str:
        """SHA-256 over the tokenizer's definition and its special tokens, not over what it was last asked to do."""
        if self._tokenizer_digest is None:
            self._tokenizer_digest = tokenizer_sha256(self.tokenizer)
        return self._tokenizer_digest

    def config_digest(self) -> str:
        """SHA-256 over the settings of the decoder's configuration that say what it computes with its weights."""
        return config_sha256(self.config)

    def identity(self) -> dict[str, str]:
        """Which base model this is, as updates and ledgers record it; `emendo.updates.base_model` compares two."""
        return {
            "name": self.name,
            "model_type": self.spec.model_type,
            "weights_sha256": self.weights_digest(),
            "tokenizer_sha256": self.tokenizer_digest(),
            "config_sha256": self.config_digest(),
            "config": config_record(self.config, self.model),
        }


ModelAdapter = EditableModel
"""The old name, for one version."""
