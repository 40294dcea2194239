"""Where a word ends: the tokens after which it cannot be going on."""

from __future__ import annotations

import unicodedata
import weakref
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from emendo.arguments import checked
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.requests.joining import unspaced

_GOES_ON = "-_'’\u2010\u2011"
"""Signs that stand inside words."""


_KNOWN: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], Bool[Tensor, " vocab"]]] = weakref.WeakKeyDictionary()
"""What was last found of a tokenizer, and what of it that depends on: reading 50,000 tokens takes 0.4 s."""


@checked
def ends_in_word(request: EditRequest) -> bool:
    """Whether a target ends in a word or number that more letters or digits would make another one.

    Not where it ends in punctuation, nor in a script without spaces, whose words nothing marks.
    """
    last = request.target.strip()[-1]
    return last.isalnum() and not unspaced(last)


@checked
def word_end_tokens(lm: EditableModel) -> Bool[Tensor, " vocab"]:
    """Which tokens end the word before them: they begin with a space or punctuation, or end the text.

    A token is read behind a letter, where a space that a tokenizer keeps at the begin of words is seen. Tokens that are
    no text of their own (parts of a character, other special tokens) do not count.
    """
    state = len(lm.tokenizer), lm.vocab_size, tuple(lm.tokenizer.all_special_ids), tuple(sorted(lm.stop_ids))
    known = _KNOWN.get(lm.tokenizer)
    if known is None or known[0] != state:
        known = _KNOWN[lm.tokenizer] = state, _read(lm)
    return known[1].to(lm.device)


def _read(lm: EditableModel) -> Bool[Tensor, " vocab"]:
    known = min(len(lm.tokenizer), lm.vocab_size)
    special = set(lm.tokenizer.all_special_ids)
    anchor = lm.encode_bare("a")
    lead = str(lm.tokenizer.decode(anchor))
    texts = lm.tokenizer.batch_decode([[*anchor, token] for token in range(known)])
    ends = torch.zeros(lm.vocab_size, dtype=torch.bool)
    for token, text in enumerate(texts):
        ends[token] = token not in special and text.startswith(lead) and _ends_word(text[len(lead) : len(lead) + 1])
    ends[[token for token in lm.stop_ids if lm.knows(token)]] = True
    return ends


def _ends_word(first: str) -> bool:
    return first != "" and (
        first.isspace() or (unicodedata.category(first)[0] in "PS" and first not in _GOES_ON and first != "\ufffd")
    )
