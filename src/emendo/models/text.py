"""A model's text: what its tokenizer makes of it, how long it may be, and batches of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.arguments import TokenId, checked
from emendo.errors import InputError, RequestError
from emendo.models.batch import TokenBatch
from emendo.models.chat import ChatTemplate
from emendo.models.decoder import DecoderView
from emendo.models.identity import tokenizer_sha256
from emendo.models.limits import check_ids, check_length, known_tokens, longest_text
from emendo.requests import Conversation, Message, Prompt


class TextModel(DecoderView):
    """A decoder with its tokenizer: texts become rows of tokens that the model takes, and the other way round.

    Args:
        model: As `DecoderView` takes it.
        tokenizer: Its fast tokenizer.
        name: How reports and files name the model.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "") -> None:
        super().__init__(model, tokenizer, name)
        self._tokenizer_digest: str | None = None

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens, that the model has positions for and computes as it does any shorter one."""
        return longest_text(self)

    @checked
    def encode(self, text: str) -> list[int]:
        """Token ids as the model expects them: its BOS if it has one, never a trailing EOS."""
        return self.encode_with_offsets(text)[0]

    @checked
    def encode_with_offsets(self, text: str, *, whole: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and the character span of each; special tokens that are not in the text span nothing.

        Args:
            text: The text.
            whole: It has all the special tokens that it is to have, as a chat template writes them.
        """
        encoded = self.tokenizer(
            text,
            add_special_tokens=not whole,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
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
        return self.encode_prompt(Conversation((Message("user", message),)))

    @checked
    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Token ids of what the model is asked: of a text, or of a conversation up to where its answer begins.

        Raises:
            InputError: There is no token; or it is a conversation, and the tokenizer has no chat template or one that
                refuses it.
        """
        if isinstance(prompt, str):
            return self.encode(prompt)
        return self.encode_with_offsets(self.chat.opened(prompt).text, whole=True)[0]

    @property
    def chat(self) -> ChatTemplate:
        """The model's own chat template.

        Raises:
            InputError: The tokenizer has none.
        """
        return ChatTemplate(self.tokenizer, self.name)

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
        if not messages:
            raise InputError("there is no message; expected one or more (role, content) (messages=)")
        try:
            turns = [Message(role, content) for role, content in messages]  # type: ignore[arg-type]  # Message checks
        except RequestError as error:
            raise InputError(f"{'; '.join(error.problems)} (messages=)") from error
        return self.encode_bare(self.chat.whole(turns))  # a template writes the special tokens itself

    @checked
    def encode_conversation(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a whole conversation: in the chat template, or as plain text, a line a turn, without one.

        Args:
            messages: (role, content) of each turn.

        Raises:
            InputError: There is no message, or the template refuses the conversation.
        """
        if self.has_chat_template or not messages:
            return self.encode_messages(messages)
        return self.encode("\n".join(f"{role.capitalize()}: {content}" for role, content in messages))

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

    @property
    def stop_ids(self) -> set[int]:
        """Tokens that end a continuation."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        found = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        return {int(token) for token in found if token is not None}

    def tokenizer_digest(self) -> str:
        """SHA-256 over the tokenizer's definition and its special tokens, not over what it was last asked to do."""
        if self._tokenizer_digest is None:
            self._tokenizer_digest = tokenizer_sha256(self.tokenizer)
        return self._tokenizer_digest
