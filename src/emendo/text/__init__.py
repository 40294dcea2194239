"""Text: where subjects and targets are among the tokens, and the contexts that prompts are put in."""

from emendo.requests import continuation
from emendo.text.alignment import (
    AlignedEdit,
    AlignedPrompt,
    align_edit,
    align_prompt,
    encode_target,
)
from emendo.text.contexts import FIXED_CONTEXTS, SCHEMES, prefix_contexts
from emendo.text.word_end import ends_in_word, word_end_tokens

__all__ = [
    "FIXED_CONTEXTS",
    "SCHEMES",
    "AlignedEdit",
    "AlignedPrompt",
    "align_edit",
    "align_prompt",
    "continuation",
    "encode_target",
    "ends_in_word",
    "prefix_contexts",
    "word_end_tokens",
]
