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

__all__ = [
    "FIXED_CONTEXTS",
    "SCHEMES",
    "AlignedEdit",
    "AlignedPrompt",
    "align_edit",
    "align_prompt",
    "continuation",
    "encode_target",
    "prefix_contexts",
]
