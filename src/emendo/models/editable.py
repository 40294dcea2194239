"""One view over an unmodified Hugging Face decoder: its weights, its activations, its text.

`EditableModel` is all of it, checked: callers see `[d_out, d_in]` weights, `[batch, seq, ·]` activations and a model
that is as they left it. Where the parts are is in `models.decoder`, text in `models.text`, and forward passes in
`models.runnable`; what needs less than the whole takes the smaller class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.arguments import Size, checked
from emendo.models.checks import check_model
from emendo.models.checksums import BaseWeights
from emendo.models.foreign_hooks import ForeignHooks
from emendo.models.generation import greedy_continuations
from emendo.models.identity import config_record, config_sha256
from emendo.models.parts import WrappedParts
from emendo.models.runnable import RunnableModel
from emendo.requests import Prompt


class EditableModel(RunnableModel):
    """A causal language model as editing sees it.

    Args:
        model: A transformers causal LM of a supported family; what torch.compile(model) made of one stands for it.
        tokenizer: Its fast tokenizer.
        name: How reports and files name the model.

    Raises:
        UnsupportedModelError: The family, the weights or the tokenizer cannot be edited, or hooks of others change what
            the model computes; says why.
        SelfCheckError: A captured key times the weight does not give the captured MLP output.
        NumericalError: What the model computes is not finite.
    """

    @checked
    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        super().__init__(model, tokenizer, name)
        self._hooks = ForeignHooks()
        check_model(self)
        self._hooks.check(self)
        self._parts = WrappedParts(self)

    @checked
    def generate(self, prompt: Prompt, max_new_tokens: Size = 32) -> str:
        """Greedy continuation of a prompt, without the prompt; it ends where the model's positions end."""
        return self.generate_many([prompt], max_new_tokens)[0]

    @checked
    def generate_many(self, prompts: Sequence[Prompt], max_new_tokens: Size = 32) -> list[str]:
        """Greedy continuations of prompts, in batches of similar length.

        Args:
            prompts: Texts to continue, or conversations to answer.
            max_new_tokens: Most tokens to add to each; a continuation ends earlier at an EOS or at the last position.
        """
        return greedy_continuations(self, prompts, max_new_tokens)

    # ---- identity ----------------------------------------------------------------------------------------

    def weights_digest(self) -> str:
        """SHA-256 over all parameters (name, dtype, shape, bytes) of the unedited model.

        Computed when first asked for, and again where the weights have changed since and hold no edits.

        Raises:
            UnsupportedModelError: Hooks of others change what the model computes, so that its weights do not say it.
        """
        if self._shared is not None:
            return self._shared.weights_digest()
        self._hooks.check(self)
        return self._base.sha256(self.model, edited=self.holds_edits)

    def accept_weights(self) -> None:
        """Take the weights as they are now for those of the unedited model; what was written is forgotten.

        Raises:
            WeightsChangedError: A module is another one than when the model was wrapped.
            UnsupportedModelError: Two modules share a weight.
        """
        self.check_parts()
        self.contents.forget()
        self._base = BaseWeights()

    def config_digest(self) -> str:
        """SHA-256 over the settings of the decoder's configuration that say what it computes with its weights."""
        return config_sha256(self.config)

    def identity(self) -> dict[str, str]:
        """Which base model this is, as updates and ledgers record it; `emendo.models.base_model` compares two."""
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
