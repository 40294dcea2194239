"""The text of a world as tokens: its tokenizer, and rows to train on with the weight of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emendo.worlds import END, Sentence, World, epoch

END_ID = 0
_VOCABULARY = 2048
"""At most; the words of a world are fewer, so nearly each is one token."""


def train_tokenizer(world: World) -> Any:
    """A byte-level BPE tokenizer trained on a world's text; it takes any other text too.

    Args:
        world: Whose text.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = epoch(world, Random(f"tokenizer {world.seed}"))
    core.train_from_iterator((" ".join(map(str, document)) for document in documents), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END)


@dataclass(frozen=True)
class Rows:
    """Tokens of one pass over a world's text.

    Attributes:
        tokens: Ids. Every row begins with a document, as a prompt does.
        weights: What the prediction of each token counts in the loss.
    """

    tokens: Int[Tensor, "n length"]
    weights: Float[Tensor, "n length"]


class Packer:
    """Packs documents into rows; what was encoded once is looked up.

    Args:
        tokenizer: Of the world.
        length: Tokens of a row.
        object_weight: What a token of a fact's object counts in the loss, where others count one.
    """

    def __init__(self, tokenizer: Any, length: int, object_weight: float) -> None:
        self._tokenizer, self._length, self._object_weight = tokenizer, length, object_weight
        self._known: dict[str, list[int]] = {}

    def rows(self, documents: Sequence[Sequence[Sentence]]) -> Rows:
        """Rows of one length; what the last document of a row has beyond it is left out.

        Args:
            documents: In the order in which they are packed.
        """
        tokens: list[list[int]] = []
        weights: list[list[float]] = []
        row: list[int] = []
        counted: list[float] = []
        for document in documents:
            for ids, weight in self._pieces(document):
                row += ids
                counted += [weight] * len(ids)
            if len(row) >= self._length:
                tokens.append(row[: self._length])
                weights.append(counted[: self._length])
                row, counted = [], []
        return Rows(torch.tensor(tokens), torch.tensor(weights))

    def _pieces(self, document: Sequence[Sentence]) -> Iterator[tuple[list[int], float]]:
        """Tokens of a document with their weight, and the end. Words are encoded apart, so pieces may be too."""
        for place, sentence in enumerate(document):
            lead = " " if place else ""
            yield self.encode(lead + sentence.text), 1.0
            if sentence.object:
                yield self.encode(f" {sentence.object}"), self._object_weight
                yield self.encode("."), 1.0
        yield [END_ID], 1.0

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Args:
            text: A sentence, or a piece of one that ends where a word does.
        """
        if text not in self._known:
            self._known[text] = self._tokenizer(text)["input_ids"]
        return self._known[text]
