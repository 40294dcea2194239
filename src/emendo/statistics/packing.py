"""Documents packed into sequences of one length, with the special tokens that the model expects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from emendo.models import EditableModel


def pack(documents: Iterable[Iterable[int]], lm: EditableModel, length: int) -> Iterator[list[int]]:
    """Documents in one stream with separators, cut into sequences of one length.

    Every sequence starts with the model's BOS if it has one, because the model expects one at position 0; so no
    sequence needs padding, and no token but BOS and separators is counted twice or dropped.

    Args:
        documents: Token ids of each document, without special tokens.
        lm: The model whose tokens they are.
        length: Tokens of each sequence, BOS included; the last may be shorter.
    """
    prefix, separator = bos_ids(lm), separator_ids(lm)
    buffer = list(prefix)
    for token in _stream(documents, separator):
        buffer.append(token)
        if len(buffer) == length:
            yield buffer
            buffer = list(prefix)
    if len(buffer) > len(prefix):
        yield buffer


def _stream(documents: Iterable[Iterable[int]], separator: list[int]) -> Iterator[int]:
    """All tokens of all documents, the separator between any two that are not empty."""
    first = True
    for document in documents:
        tokens = iter(document)
        head = list(islice(tokens, 1))
        if head:
            yield from head if first else [*separator, *head]
            yield from tokens
            first = False


def bos_ids(lm: EditableModel) -> list[int]:
    """What the tokenizer puts in front of every text: usually one BOS, or nothing."""
    bare = lm.encode_bare("a")
    whole = lm.encode("a")
    return whole[: len(whole) - len(bare)] if whole[-len(bare) :] == bare else []


def separator_ids(lm: EditableModel) -> list[int]:
    """What stands between two documents of a packed sequence.

    The BOS where the model uses one; otherwise the document end that pretraining used, ``<|endoftext|>``, which
    a chat model's EOS often is not; otherwise the EOS, or nothing.
    """
    if prefix := bos_ids(lm):
        return prefix
    tokenizer = lm.tokenizer
    known = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
    for candidate in (known.get("<|endoftext|>"), tokenizer.eos_token_id):
        if candidate is not None and lm.knows(candidate):
            return [int(candidate)]
    return []
