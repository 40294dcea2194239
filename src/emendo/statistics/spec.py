"""What is collected, and what a collected second moment is valid for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from emendo.arguments import Between, Count, check_fields, checked
from emendo.errors import CorpusError
from emendo.models import EditableModel
from emendo.statistics.corpus import Corpus
from emendo.statistics.packing import bos_ids
from emendo.statistics.sample import SelfSampledCorpus
from emendo.statistics.second_moment import Accumulate

DEFAULT_LENGTH = 128
"""Tokens of a packed sequence: edit prompts are short, and short sequences keep attention cheap."""


@checked
def default_tokens(d_in: Count, multiple: Annotated[float, Between(0, 10**9, open=True)] = 10) -> int:
    """How many keys are counted unless the caller says otherwise: a multiple of their dimension.

    At least `d_in` keys are needed for the moment to be invertible.

    Args:
        d_in: Length of a key vector.
        multiple: Keys for each component.

    Source: Gupta et al. 2025 (arXiv 2506.04226), "Efficient Knowledge Editing via Minimal Precomputation":
    dynamic multiplier 10 in the published configurations.
    """
    return round(multiple * d_in)


@dataclass(frozen=True)
class MomentSpec:
    """What to collect.

    Args:
        corpus: Where the text comes from; sampled from the model itself unless given.
        tokens: Number of key vectors to count, exactly; None: ten for each key component (`default_tokens`).
        length: Tokens of each sequence, the model's BOS included.
        exclude_first: Leave out position 0 of every sequence. By default it is counted, as in the published
            statistics: many models keep an attention sink there whose key in one early layer is tens of times longer
            than any other, and an edit that does not preserve it disturbs every prompt.
        accumulate: Dtype of the running sum.
    """

    corpus: Corpus = field(default_factory=SelfSampledCorpus)
    tokens: Count | None = None
    length: int = DEFAULT_LENGTH
    exclude_first: bool = False
    accumulate: Accumulate = "float64"

    def __post_init__(self) -> None:
        check_fields(self, CorpusError, options=True)

    @checked
    def tokens_for(self, lm: EditableModel, layers: Sequence[int]) -> int:
        """Number of keys to count: `tokens`, or the default for the widest of `layers`."""
        if self.tokens is not None:
            return self.tokens
        return default_tokens(max(map(lm.directions, lm.check_layers(layers))))

    @checked
    def check_length(self, lm: EditableModel) -> None:
        """Refuse a length that the model has no positions for, or that leaves no text.

        Raises:
            CorpusError: The length is out of range.
        """
        shortest = len(bos_ids(lm)) + 2
        if not shortest <= self.length <= lm.max_length:
            raise CorpusError(
                f"length={self.length}; {lm.name!r} takes sequences of {shortest} to {lm.max_length} tokens (--length)"
            )

    @checked
    def fingerprint(self, lm: EditableModel, layers: Sequence[int]) -> Fingerprint:
        """What a moment collected by this spec from this model is valid for."""
        return Fingerprint(
            weights=lm.weights_digest(),
            config=lm.config_digest(),
            tokenizer=lm.tokenizer_digest(),
            dtype=str(lm.dtype).removeprefix("torch."),
            corpus=self.corpus.describe(),
            tokens=self.tokens_for(lm, layers),
            length=self.length,
            exclude_first=self.exclude_first,
            accumulate=self.accumulate,
        )


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a second moment depends on besides the module; equal fingerprints mean equal moments.

    Args:
        weights: Digest of the model's weights.
        config: Digest of what its configuration makes of them.
        tokenizer: Digest of its tokenizer.
        dtype: Dtype in which the model ran.
        corpus: Description of the text, its digest included.
        tokens: Number of key vectors.
        length: Tokens of a sequence.
        exclude_first: Whether position 0 was left out.
        accumulate: Dtype of the running sum.
    """

    weights: str
    config: str
    tokenizer: str
    dtype: str
    corpus: Mapping[str, Any]
    tokens: int
    length: int
    exclude_first: bool
    accumulate: str

    @classmethod
    @checked
    def from_json(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `to_json` wrote.

        Raises:
            KeyError: A field is missing.
        """
        return cls(**{entry.name: values[entry.name] for entry in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self) | {"corpus": dict(self.corpus)}

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @checked
    def differences(self, expected: Fingerprint) -> list[str]:
        """In words, where this fingerprint is not the expected one."""
        mine, theirs = _flat(self.to_json()), _flat(expected.to_json())
        return [
            f"{name}: found {_short(mine.get(name))}, expected {_short(theirs.get(name))}"
            for name in dict.fromkeys([*theirs, *mine])
            if mine.get(name) != theirs.get(name)
        ]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    corpus = {f"corpus {name}": value for name, value in values["corpus"].items()}
    return {name: value for name, value in values.items() if name != "corpus"} | corpus


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:13]}…{text[-1]}"
