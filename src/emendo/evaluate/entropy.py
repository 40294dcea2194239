"""Generation entropy: whether free text still reads like text, or repeats itself.

Tokenisation rule: a number with its inner points and commas, an abbreviation of single letters with points ("U.S."), a
run of letters, digits and underscores with its inner hyphens and apostrophes, and every other visible character by
itself, is one word. Case stays. The published values use nltk's Treebank tokeniser, which also parts contractions
("do", "n't"), writes straight double quotes as ``` `` ``` and ``''``, keeps "..." and "--" whole, and parts a final
point only at the end of a sentence: n-grams around these differ, everything else agrees.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.arguments import Confidence, Count, Resamples, Seed, checked
from emendo.errors import InputError
from emendo.evaluate.table import Means, mean_over_records
from emendo.models import EditableModel
from emendo.models.generation import continue_rows, most_likely
from emendo.models.sampling import draw, row_uniforms
from emendo.progress import Watched, watching
from emendo.solve.numerics import pinned

_WORD = re.compile(r"\d+(?:[.,]\d+)*|(?:[^\W\d_]\.){2,}|\w+(?:['’-]\w+)*|\S")


def entropy_words(text: str) -> list[str]:
    """The words of a text whose n-grams are counted."""
    return _WORD.findall(text)


@checked
def ngram_entropy(words: Sequence[str | int], n: Count) -> float:
    """Entropy of the n-grams of a text, in bits; 0 for a text with no n-gram.

    H_n = -Σ p log2 p over distinct n-grams, p its share of all n-grams
    """
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = counts.total()
    return 0.0 - math.fsum(count / total * math.log2(count / total) for count in counts.values())


@checked
def generation_entropy(texts: Sequence[str]) -> float:
    """Mean over texts of the weighted bigram and trigram entropy: GE, in bits (papers print it times 100).

        GE = mean over texts of H_2 / 3 + 2 H_3 / 3

    Args:
        texts: At least one, with the prompt at its beginning in the published form.

    Raises:
        InputError: There is no text.

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: generation entropy, as computed by its code; MEMIT's
    Eq. 27 as printed is twice this.
    """
    if not texts:
        raise InputError("generation entropy is a mean over texts; there is none")
    return math.fsum(_weighted(entropy_words(text)) for text in texts) / len(texts)


@checked
def token_entropy(ids: Sequence[int]) -> float:
    """Entropy of n-grams of token ids as a share of the most that this length allows, in [0, 1].

        T_n = H_n / log2(N_n), N_n = len(ids) - n + 1; 0 where N_n < 2        T_2 / 3 + 2 T_3 / 3

    Unlike GE it does not grow with the length of the text. It does not compare with published GE, nor between models
    of different tokenizers.

    Source: Gupta et al. 2024 (A Unified Framework for Model Editing, arXiv 2403.14236), code: adjusted token entropy.
    """
    shares = []
    for n in (2, 3):
        total = len(ids) - n + 1
        shares.append(ngram_entropy(ids, n) / math.log2(total) if total > 1 else 0.0)
    return shares[0] / 3 + 2 * shares[1] / 3


def _weighted(words: Sequence[str | int]) -> float:
    return ngram_entropy(words, 2) / 3 + 2 * ngram_entropy(words, 3) / 3


@dataclass(frozen=True)
class FreeText:
    """One freely generated text.

    Attributes:
        prompt: Its beginning.
        continuation: What the model added, as generated.
        entropy: GE of this text.
        token_entropy: `token_entropy` of the new tokens.
    """

    prompt: str
    continuation: str
    entropy: float
    token_entropy: float


@dataclass(frozen=True)
class EntropyScores:
    """Generation entropy of records, and how the texts were made.

    Attributes:
        records: The texts of each record.
        means: ``GE`` (bits) and ``token_entropy``: mean over the texts of a record, then over records.
        include_prompt: Entropy of prompt and continuation, rather than of the continuation alone.
        total_tokens: Tokens of a text, prompt included.
        top_k: Sampled from so many most likely tokens; None for greedy texts.
        seed: Of the sampling.
    """

    records: tuple[tuple[FreeText, ...], ...]
    means: Means
    include_prompt: bool
    total_tokens: int
    top_k: int | None
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "include_prompt": self.include_prompt,
            "total_tokens": self.total_tokens,
            "top_k": self.top_k,
            "seed": self.seed,
            "scores": self.means.to_dict(),
            "records": [[asdict(text) for text in texts] for texts in self.records],
        }


@checked
@pinned()
def entropy_of_records(
    lm: EditableModel,
    prompts: Sequence[Sequence[str]],
    *,
    include_prompt: bool = True,
    total_tokens: Count = 100,
    top_k: Count | None = 5,
    seed: Seed = 0,
    token_budget: Count | None = None,
    progress: Watched = None,
    confidence: Confidence = 0.95,
    n_resamples: Resamples = 1000,
) -> EntropyScores:
    """Continue each record's prompts freely and measure the entropy of the texts.

    As published a text has `total_tokens` tokens, prompt included, and goes on past an end-of-text token (which is left
    out of the text): entropy depends on length, so all texts have one. Sampling is seeded by the place of a prompt in
    its record and by the record's place, and does not depend on batches; the published code's is not seeded.

    Args:
        lm: The model.
        prompts: The generation prompts of each record; a record without any counts nowhere.
        include_prompt: Whether a text begins with its prompt when its words are counted, as published.
        total_tokens: Tokens of a text, its prompt included.
        top_k: Sample from so many most likely tokens; None takes the most likely one.
        seed: Of the sampling and of the bootstrap.
        token_budget: Most tokens of one batch. Changes speed and memory.
        progress: Counts texts.
        confidence: Of the bootstrap intervals.
        n_resamples: Of the bootstrap.

    Raises:
        InputError: There is no prompt, one leaves no room for a new token, or a setting is out of range.

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: top-5 sampling to 100 tokens.
    """
    flat = [prompt for record in prompts for prompt in record]
    if not flat:
        raise InputError("there is nothing to continue: no record has a generation prompt")
    rows = [lm.encode(prompt) for prompt in flat]
    total_tokens = min(total_tokens, lm.max_length)
    if full := [prompt for prompt, row in zip(flat, rows, strict=True) if len(row) >= total_tokens]:
        raise InputError(
            f"{len(full)} of {len(flat)} prompts leave no room within {total_tokens} tokens, such as {full[0][:60]!r}; "
            "expected shorter prompts or longer texts (total_tokens=)"
        )
    progress = watching(progress)
    progress.start("free text", len(rows))
    choose = most_likely if top_k is None else _Sampled(seed, _names(prompts), rows, total_tokens, top_k)
    limits = [total_tokens - len(row) for row in rows]
    found = continue_rows(
        lm, rows, limits, choose=choose, stop=False, token_budget=token_budget, on_rows=progress.advance
    )
    progress.finish()
    texts = iter(
        [
            _free_text(lm, prompt, continuation.ids, include_prompt)
            for prompt, continuation in zip(flat, found, strict=True)
        ]
    )
    records = tuple(tuple(next(texts) for _ in record) for record in prompts)
    means = mean_over_records(
        [_measures(record) for record in records],
        ("GE", "token_entropy"),
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )
    return EntropyScores(records, means, include_prompt, total_tokens, top_k, seed)


class _Sampled:
    """Choice of tokens by each text's own stream of random numbers."""

    def __init__(self, seed: int, names: Sequence[int], rows: Sequence[Sequence[int]], total: int, top_k: int) -> None:
        self.top_k = top_k
        self.uniform = torch.stack([row_uniforms(seed, name, total) for name in names])
        self.lengths = torch.tensor([len(row) for row in rows])

    def __call__(self, logits: Float[Tensor, "rows vocab"], rows: Sequence[int], step: int) -> Int[Tensor, " rows"]:
        places = torch.tensor(list(rows))
        at = (self.lengths[places] + step).clamp_max(self.uniform.shape[1] - 1)
        return draw(logits, self.uniform[places, at].to(logits.device), top_k=self.top_k)


def _names(prompts: Sequence[Sequence[str]]) -> list[int]:
    """A number for each prompt from its record's place and its own, so that other records do not change its stream."""
    return [record * 1_000_003 + place for record, texts in enumerate(prompts) for place in range(len(texts))]


def _free_text(lm: EditableModel, prompt: str, ids: Sequence[int], include_prompt: bool) -> FreeText:
    continuation = lm.decode(ids)
    words = entropy_words(prompt + continuation if include_prompt else continuation)
    return FreeText(prompt, continuation, _weighted(words), token_entropy(ids))


def _measures(texts: Sequence[FreeText]) -> dict[str, float | None]:
    if not texts:
        return {}
    return {
        "GE": math.fsum(text.entropy for text in texts) / len(texts),
        "token_entropy": math.fsum(text.token_entropy for text in texts) / len(texts),
    }
