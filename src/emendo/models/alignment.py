"""From text to token positions, by the tokenizer's character offsets and never by string arithmetic on tokens.

Two questions are answered here: which token is the subject's last one, and which tokens are the target.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from emendo.arguments import checked
from emendo.errors import RequestError
from emendo.models import EditableModel
from emendo.requests import SLOT, AnyContext, EditRequest, Join, Prompt, asks_in_chat, continuation, placed, prompt_text

_ANCHORS = ("\n", ".")
"""Text that a target is put after to see its tokens inside a text, where the tokenizer marks the start of one."""


@dataclass(frozen=True)
class AlignedPrompt:
    """A prompt as tokens.

    Attributes:
        ids: Token ids, with the model's BOS if it has one.
        subject_last: Index in `ids` of the last token that overlaps the subject.
    """

    ids: tuple[int, ...]
    subject_last: int


@dataclass(frozen=True)
class AlignedEdit:
    """A prompt and its target as tokens.

    Attributes:
        prompt: The prompt.
        target_ids: Token ids of the target that follow it.
    """

    prompt: AlignedPrompt
    target_ids: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and all target tokens but the last, which nothing has to be predicted from."""
        return self.prompt.ids + self.target_ids[:-1]


@checked
def align_prompt(lm: EditableModel, request: EditRequest, context: AnyContext = SLOT) -> AlignedPrompt:
    """Tokens of a request's prompt inside a context, and where its subject ends.

    Args:
        lm: Gives the tokens and their character spans, and the chat template of what is asked in chat.
        request: The edit; the subject is the text in its slot, wherever else the same words occur.
        context: Template with one ``{}`` for the whole prompt, or a `Context`.

    Raises:
        RequestError: No token overlaps the subject, or none of its tokens is known.
        InputError: It is asked in chat, and the model has no chat template or one that refuses the conversation.
    """
    subject = request.subject.strip()
    place = placed(request, context)
    if isinstance(place.prompt, str):
        text, (start, end) = place.prompt, place.span
        ids, offsets = lm.encode_with_offsets(text)
    else:
        asked = lm.chat.opened(place.prompt, place.span, place.message)
        assert asked.span is not None  # it was asked for
        text, (start, end) = asked.text, asked.span
        ids, offsets = lm.encode_with_offsets(text, whole=True)
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    if not inside:
        raise RequestError(
            f"no token of {text!r} overlaps the subject {subject!r}; expected a subject of visible characters"
        )
    unknown = lm.tokenizer.unk_token_id
    if unknown in (own := [ids[i] for i in inside]) and not any(
        token != unknown and lm.decode([token]).strip() for token in own
    ):
        raise RequestError(
            f"the tokenizer of {lm.name!r} has no tokens for the subject {subject!r}: it reads it like every "
            "other name that it does not know; expected text in a script that the model was trained on"
        )
    return AlignedPrompt(tuple(ids), inside[-1])


@checked
def encode_target(lm: EditableModel, prompt: Prompt, target: str, join: Join = "auto") -> tuple[list[int], list[int]]:
    """Tokens of a prompt, and the tokens of a target that follows it.

    In chat the target follows as the template writes an answer, whatever whitespace it brings.

    The two are tokenised together, as the model would read them; where that would change the prompt's own
    tokens (a merge across the border) the target is tokenised apart from it, so that scores of different targets are
    conditioned on one prompt.

    Args:
        lm: The model.
        prompt: Text before the target, or the conversation that it answers.
        target: Text to be predicted.
        join: How the two join, as in `continuation`.

    Raises:
        RequestError: The target is empty, or the tokenizer cannot write it after this prompt.
        InputError: The model has no chat template, or one that refuses the conversation.
    """
    in_chat = not isinstance(prompt, str)
    if isinstance(prompt, str):
        stripped, spaced = continuation(prompt, target, join)
    else:
        asked = lm.chat.opened(prompt)
        stripped, spaced = asked.text, asked.joint + continuation("", target)[1].strip()
    prompt_ids = lm.encode_with_offsets(stripped, whole=in_chat)[0]
    joint = lm.encode_with_offsets(stripped + spaced, whole=in_chat)[0]
    n = len(prompt_ids)
    target_ids = joint[n:] if joint[:n] == prompt_ids else _encode_apart(lm, prompt_ids, spaced, joint)
    if not target_ids or lm.tokenizer.unk_token_id in target_ids:
        raise RequestError(
            f"the tokenizer of {lm.name!r} has no tokens for the target {target!r} after {prompt_text(prompt)!r}; "
            "expected text in a script that the model was trained on"
        )
    return prompt_ids, target_ids


def _encode_apart(lm: EditableModel, prompt_ids: list[int], spaced: str, joint: list[int]) -> list[int]:
    """Tokens of a target by itself that read, after the prompt's, like prompt and target tokenised together.

    A tokenizer may mark the start of any text with a space ("▁"), which a target that follows without one must
    not get: then it is tokenised after an anchor. Empty where no way reads right.
    """
    wanted = unicodedata.normalize("NFC", lm.decode(joint))
    candidates = [lm.encode_bare(spaced)]
    for anchor in _ANCHORS:
        before, both = lm.encode_bare(anchor), lm.encode_bare(anchor + spaced)
        if both[: len(before)] == before:
            candidates.append(both[len(before) :])
    for ids in candidates:
        if unicodedata.normalize("NFC", lm.decode([*prompt_ids, *ids])) == wanted:
            return ids
    return []


@checked
def align_edit(
    lm: EditableModel, request: EditRequest, context: AnyContext = SLOT, *, end_of_text: bool = False
) -> AlignedEdit:
    """A request inside a context as tokens, ready for the target search.

    The target's tokens are those that follow the plain prompt, the same in every context of one form: raw text or chat.

    Args:
        lm: The model.
        request: The fact to write.
        context: Template with one ``{}`` for the whole prompt, or a `Context`.
        end_of_text: Add the model's end-of-text token to the target.

    Raises:
        RequestError: The request cannot be aligned, or the tokenizer has no end-of-text token.
        InputError: It is asked in chat, and the model has no chat template or one that refuses the conversation.
    """
    return AlignedEdit(align_prompt(lm, request, context), target_tokens(lm, request, context, end_of_text=end_of_text))


def target_tokens(
    lm: EditableModel, request: EditRequest, context: AnyContext = SLOT, *, end_of_text: bool = False
) -> tuple[int, ...]:
    """The target's tokens after the plain prompt, or in chat after the conversation that a context makes of it.

    Args:
        lm: The model.
        request: The fact to write.
        context: As of `align_edit`.
        end_of_text: Add the model's end-of-text token.

    Raises:
        RequestError: The tokenizer cannot write the target there, or has no end-of-text token.
        InputError: It is asked in chat, and the model has no chat template or one that refuses the conversation.
    """
    asked = placed(request, context).prompt if asks_in_chat(request, context) else request.text
    _, target_ids = encode_target(lm, asked, request.target, request.join)
    if end_of_text:
        if not lm.knows(lm.tokenizer.eos_token_id):
            raise RequestError(
                f"the tokenizer of {lm.name!r} has no end-of-text token that the model knows to append to "
                "targets; leave it out (--set target.end_of_text=false)"
            )
        target_ids = [*target_ids, lm.tokenizer.eos_token_id]
    return tuple(target_ids)
