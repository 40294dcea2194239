"""From text to token positions, by the tokenizer's character offsets and never by string arithmetic on tokens.

Two questions are answered here: which token is the subject's last one, and which tokens are the target.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from emendo.errors import RequestError
from emendo.models import ModelAdapter
from emendo.requests import SLOT, EditRequest

_UNSPACED_SCRIPTS = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Narrow scripts (first word of a character's Unicode name) that put no space between words."""

_CLOSED_BY = {"“": "”„", "‘": "‚", "«": "»", "‹": "›"}
"""Quotes that open a quotation in one language and close it in another, with the partners that tell which.

An opening quote is then one more than its partners: “ closes in „Paris“ and opens in “Paris” or “.
"""

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


def continuation(prompt: str, target: str) -> tuple[str, str]:
    """The prompt without trailing spaces, and the target with the space that separates them.

    A target that brings its own leading space or line break keeps it, and a space at the end of the prompt moves to
    the target, because tokenizers attach a space to the word after it. Otherwise one space is supplied, except after a
    line break, an opening bracket, quote or hyphen, and between characters of scripts that are written without spaces.

    Args:
        prompt: Text before the target.
        target: Text to be predicted.

    Raises:
        RequestError: The target is empty.
    """
    stripped, bare = prompt.rstrip(" "), target.strip()
    if not bare:
        raise RequestError(f"the target {target!r} is empty; expected visible text to follow {prompt!r}")
    own = target[: len(target) - len(target.lstrip())]
    if own.strip(" "):
        return stripped, own + bare
    if own or stripped != prompt or not stripped:
        return stripped, " " + bare
    joined = stripped[-1].isspace() or _opens(stripped) or (_unspaced(stripped[-1]) and _unspaced(bare[0]))
    return stripped, bare if joined else " " + bare


def align_prompt(adapter: ModelAdapter, request: EditRequest, context: str = SLOT) -> AlignedPrompt:
    """Tokens of a request's prompt inside a context, and where its subject ends.

    Args:
        adapter: Gives the tokens and their character spans.
        request: The edit; the subject is the text in its slot, wherever else the same words occur.
        context: Template with one ``{}`` for the whole prompt.

    Raises:
        RequestError: No token overlaps the subject, or none of its tokens is known.
    """
    before, _, _ = request.prompt.partition(SLOT)
    text, _ = continuation(request.text, request.target)
    lead = context.partition(SLOT)[0]
    ids, offsets = adapter.encode_with_offsets(lead + text)
    subject = request.subject.strip()
    start = len(lead) + len(before) + request.subject.index(subject)
    end = start + len(subject)
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    if not inside:
        raise RequestError(
            f"no token of {lead + text!r} overlaps the subject {subject!r}; expected a subject of visible characters"
        )
    unknown = adapter.tokenizer.unk_token_id
    if unknown in (own := [ids[i] for i in inside]) and not any(
        token != unknown and adapter.decode([token]).strip() for token in own
    ):
        raise RequestError(
            f"the tokenizer of {adapter.name!r} has no tokens for the subject {subject!r}: it reads it like every "
            "other name that it does not know; expected text in a script that the model was trained on"
        )
    return AlignedPrompt(tuple(ids), inside[-1])


def encode_target(adapter: ModelAdapter, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Tokens of a prompt, and the tokens of a target that follows it.

    The two are tokenised together, as the model would read them; where that would change the prompt's own
    tokens (a merge across the border) the target is tokenised apart from it, so that scores of different targets are
    conditioned on one prompt.

    Args:
        adapter: The model.
        prompt: Text before the target.
        target: Text to be predicted; spacing as in `continuation`.

    Raises:
        RequestError: The target is empty, or the tokenizer cannot write it after this prompt.
    """
    stripped, spaced = continuation(prompt, target)
    prompt_ids = adapter.encode(stripped)
    joint = adapter.encode(stripped + spaced)
    n = len(prompt_ids)
    target_ids = joint[n:] if joint[:n] == prompt_ids else _encode_apart(adapter, prompt_ids, spaced, joint)
    if not target_ids or adapter.tokenizer.unk_token_id in target_ids:
        raise RequestError(
            f"the tokenizer of {adapter.name!r} has no tokens for the target {target!r} after {prompt!r}; "
            "expected text in a script that the model was trained on"
        )
    return prompt_ids, target_ids


def _encode_apart(adapter: ModelAdapter, prompt_ids: list[int], spaced: str, joint: list[int]) -> list[int]:
    """Tokens of a target by itself that read, after the prompt's, like prompt and target tokenised together.

    A tokenizer may mark the start of any text with a space ("▁"), which a target that follows without one must
    not get: then it is tokenised after an anchor. Empty where no way reads right.
    """
    wanted = unicodedata.normalize("NFC", adapter.decode(joint))
    candidates = [adapter.encode_bare(spaced)]
    for anchor in _ANCHORS:
        before, both = adapter.encode_bare(anchor), adapter.encode_bare(anchor + spaced)
        if both[: len(before)] == before:
            candidates.append(both[len(before) :])
    for ids in candidates:
        if unicodedata.normalize("NFC", adapter.decode([*prompt_ids, *ids])) == wanted:
            return ids
    return []


def align_edit(
    adapter: ModelAdapter, request: EditRequest, context: str = SLOT, *, end_of_text: bool = False
) -> AlignedEdit:
    """A request inside a context as tokens, ready for the target search.

    The target's tokens are those that follow the plain prompt, the same in every context.

    Args:
        adapter: The model.
        request: The fact to write.
        context: Template with one ``{}`` for the whole prompt.
        end_of_text: Add the model's end-of-text token to the target.

    Raises:
        RequestError: The request cannot be aligned, or the tokenizer has no end-of-text token.
    """
    _, target_ids = encode_target(adapter, request.text, request.target)
    if end_of_text:
        if adapter.tokenizer.eos_token_id is None:
            raise RequestError(
                f"the tokenizer of {adapter.name!r} has no end-of-text token to append to targets; "
                "leave it out (--set target.end_of_text=false)"
            )
        target_ids = [*target_ids, adapter.tokenizer.eos_token_id]
    return AlignedEdit(align_prompt(adapter, request, context), tuple(target_ids))


def _opens(text: str) -> bool:
    """Whether text ends in something that a word follows without a space."""
    last = text[-1]
    if last in _CLOSED_BY:
        return text.count(last) > sum(map(text.count, _CLOSED_BY[last]))
    if unicodedata.category(last) in ("Ps", "Pi", "Pd") or last in "¿¡":
        return True
    if last == "'":  # an apostrophe, unless nothing that it could belong to is before it
        return not text[-2:-1].strip() or _opens(text[:-1])
    # A straight quote opens when an odd number of them have been seen.
    return last == '"' and text.count('"') % 2 == 1


def _unspaced(character: str) -> bool:
    """Whether a character belongs to writing without spaces between words; its wide punctuation does."""
    name = unicodedata.name(character, "")
    if name.split(" ")[0] in _UNSPACED_SCRIPTS:
        return True
    # Wide characters are Chinese, Japanese, Korean and emoji, of which Korean and emoji take spaces.
    wide = unicodedata.east_asian_width(character) in ("W", "F", "H")
    return wide and "HANGUL" not in name and not unicodedata.category(character).startswith("S")
