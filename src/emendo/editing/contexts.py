"""Prefix contexts: texts put before a prompt so that an edit does not hang on the prompt standing alone.

A context is a template with one ``{}`` for the whole prompt; the first is always ``"{}"`` itself.
"""

from __future__ import annotations

import unicodedata

import torch

from emendo.arguments import Seed, checked
from emendo.errors import MethodError
from emendo.models import EditableModel
from emendo.models.sampling import row_uniforms, sample_tokens
from emendo.requests import SLOT

MEMIT_SEEDS = ("The", "Therefore", "Because", "I", "You")
"""First words of MEMIT's five sampled contexts."""

FIXED_CONTEXTS = (
    SLOT,
    "The weather was calm that morning. {}",
    "Therefore we opened the book again. {}",
    "Because many people had asked before. {}",
    "I wrote this down last year. {}",
    "You may have heard about it. {}",
)
"""Six contexts that need no sampling and are the same for every model."""

SCHEMES = ("memit", "rome", "fixed", "none")


@checked
def prefix_contexts(lm: EditableModel, scheme: str, seed: Seed) -> tuple[str, ...]:
    """The contexts of a scheme.

    Args:
        lm: The model that samples them.
        scheme: ``"memit"`` (the plain prompt and five sampled texts of 10 tokens, one from each seed word),
            ``"rome"`` (the plain prompt and twenty sampled texts, ten of 5 and ten of 10 tokens including the start
            token), ``"fixed"`` (`FIXED_CONTEXTS`) or ``"none"`` (the plain prompt alone).
        seed: Of the sampling; the same seed gives the same contexts for the same model.

    Raises:
        MethodError: Unknown scheme.

    Source: public code of ROME (arXiv 2202.05262) and MEMIT (arXiv 2210.07229); top-5 sampling.
    """
    if scheme == "none":
        return (SLOT,)
    if scheme == "fixed":
        return FIXED_CONTEXTS
    if scheme not in SCHEMES:
        raise MethodError(f"unknown context scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if scheme == "memit":
        texts = _sample(lm, [lm.encode(word) for word in MEMIT_SEEDS], [10] * len(MEMIT_SEEDS), seed)
    else:
        texts = _sample(lm, [[_start_token(lm)]] * 20, [5] * 10 + [10] * 10, seed)
    return (SLOT, *(f"{_clean(text)}. {SLOT}" for text in texts))


def _sample(lm: EditableModel, starts: list[list[int]], totals: list[int], seed: int) -> list[str]:
    """Continue each start to its total number of tokens; equal shapes share one batch."""
    texts = [""] * len(starts)
    shapes = [(len(start), max(len(start), total)) for start, total in zip(starts, totals, strict=True)]
    for shape in sorted(set(shapes)):
        same = [index for index, other in enumerate(shapes) if other == shape]
        batch = torch.tensor([starts[index] for index in same])
        uniform = torch.stack([row_uniforms(seed, index, shape[1]) for index in same])
        for index, row in zip(same, sample_tokens(lm, batch, uniform, top_k=5).tolist(), strict=True):
            texts[index] = lm.decode(row)
    return texts


def _start_token(lm: EditableModel) -> int:
    """What a document starts with: the BOS token, or the EOS token where documents are separated by it."""
    for candidate in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if lm.knows(candidate):
            return int(candidate)
    raise MethodError(
        "the context scheme 'rome' samples from a start token, and this tokenizer has no BOS or EOS that the model "
        "has a row for; use --set contexts.scheme=memit or fixed"
    )


def _clean(text: str) -> str:
    """Sampled text as a prefix: one line, no braces that would be taken for a slot."""
    plain = unicodedata.normalize("NFKD", text).replace("{", " ").replace("}", " ")
    return " ".join(plain.split())
