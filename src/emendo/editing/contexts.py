"""Contexts: what prompts are put in so that an edit does not hang on the prompt standing alone.

A context is a template with one ``{}`` for the whole prompt, as the request is asked: a text is put after its prefix, a
question into the message after it. Contexts of the schemes with chat put prompts into the model's chat template,
however they are asked. The first context is always the prompt alone.
"""

from __future__ import annotations

import unicodedata

import torch

from emendo.arguments import Seed, checked
from emendo.errors import MethodError
from emendo.models import EditableModel
from emendo.models.sampling import row_uniforms, sample_tokens
from emendo.requests import SLOT, AnyContext, Context, Conversation, Message

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

CHAT_CONTEXTS = (
    Context(),
    Context(text="I have a question. {}"),
    Context(before=(Message("user", "Hello!"), Message("assistant", "Hello! How can I help you today?"))),
    Context(before=(Message("system", "You are a helpful assistant."),)),
    Context(text="Please answer in a few words. {}"),
    Context(before=(Message("user", "Thank you."), Message("assistant", "You are welcome. Is there anything else?"))),
)
"""Six places in a conversation, the prompt alone first; a template that has no place for a system prompt has five."""

SCHEMES = ("memit", "rome", "fixed", "none", "chat", "chat+raw")


@checked
def prefix_contexts(lm: EditableModel, scheme: str, seed: Seed) -> tuple[AnyContext, ...]:
    """The contexts of a scheme.

    Args:
        lm: The model that samples them.
        scheme: ``"memit"`` (the plain prompt and five sampled texts of 10 tokens, one from each seed word),
            ``"rome"`` (the plain prompt and twenty sampled texts, ten of 5 and ten of 10 tokens including the start
            token), ``"fixed"`` (`FIXED_CONTEXTS`), ``"none"`` (the plain prompt alone), ``"chat"`` (`CHAT_CONTEXTS`:
            every prompt is a message in the model's chat template) or ``"chat+raw"`` (the prompt as it is asked, also
            behind two of memit's sampled texts, and three times in the form that it is not asked in).
        seed: Of the sampling; the same seed gives the same contexts for the same model.

    Raises:
        MethodError: Unknown scheme.
        InputError: A scheme with chat, and the model has no chat template.

    Source: public code of ROME (arXiv 2202.05262) and MEMIT (arXiv 2210.07229); top-5 sampling.
    """
    if scheme == "none":
        return (SLOT,)
    if scheme == "fixed":
        return FIXED_CONTEXTS
    if scheme not in SCHEMES:
        raise MethodError(f"unknown context scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    if scheme == "chat":
        return _taken(lm, CHAT_CONTEXTS)
    if scheme == "chat+raw":
        _ = lm.chat  # refuses a model without a template before anything is sampled
        sampled = prefix_contexts(lm, "memit", seed)[:3]
        return (*sampled, *(Context("other", one.text) for one in CHAT_CONTEXTS if not one.before))
    if scheme == "memit":
        texts = _sample(lm, [lm.encode(word) for word in MEMIT_SEEDS], [10] * len(MEMIT_SEEDS), seed)
    else:
        texts = _sample(lm, [[_start_token(lm)]] * 20, [5] * 10 + [10] * 10, seed)
    return (SLOT, *(f"{_clean(text)}. {SLOT}" for text in texts))


def _taken(lm: EditableModel, contexts: tuple[Context, ...]) -> tuple[Context, ...]:
    """Those that the model's template has a place for: some refuse a system prompt, or leave it out."""
    asked = Message("user", "?")
    return tuple(one for one in contexts if lm.chat.takes(Conversation((*one.before, asked))))


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
