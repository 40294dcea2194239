"""Two states of a model on a person's prompts: how far what it says moved, and which edits act there.

Both states are tried in modules of their own; the model is not written. Distributions are compared at the next token
and then at every token of what the first state goes on to say, so that a change that comes late is seen too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Count, Size, check_fields, checked
from emendo.attribution.answer import Asked, attribute
from emendo.attribution.dashboard import strongest_firing
from emendo.attribution.edits import EditSet, edits_of
from emendo.errors import InputError, NumericalError
from emendo.evaluate.drift import NextTokenLogProbs, measure_drift
from emendo.models import EditableModel
from emendo.models.batch import pack_by_tokens
from emendo.models.generation import Continuation, continue_rows
from emendo.progress import Watched, watching
from emendo.requests import Prompt, prompt_text
from emendo.updates.against_model import check_update, edited_weight
from emendo.updates.predecessors import UNEDITED
from emendo.updates.update import LayerUpdate, ModelUpdate

Order: TypeAlias = Literal["continuation", "next-token"]

_TOKENS = 2048
"""Tokens of one forward pass."""


@dataclass(frozen=True)
class State:
    """A base model with updates in it.

    Attributes:
        name: How reports call it.
        updates: In the order in which they were applied; none is the base itself.
    """

    name: str
    updates: tuple[ModelUpdate, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Side:
    """What one state says after a prompt.

    Attributes:
        continuation: Greedy, as text.
        tokens: The same token by token; an end of text is the last where it came.
        top: The most likely next tokens with their probabilities, the first the most likely.
        firing: Largest firing of every edit of the state over the prompt's tokens, ``[edits]``; None for the base.
    """

    continuation: str
    tokens: tuple[str, ...]
    top: tuple[tuple[str, float], ...]
    firing: Float[Tensor, " edits"] | None


@dataclass(frozen=True)
class PromptDifference:
    """What differs after one prompt.

    Attributes:
        prompt: Text, or the message that is answered.
        number: Its place among the prompts.
        first: What the first state says.
        second: What the second one says.
        kl: KL(first ‖ second) in nats at the next token, then after each token of the first state's continuation.
        parts_at: Token of the continuations at which they part; None where they are the same.
        common: Text that both say before they part.
        contributions: Where one state is the base and the continuations part: what each edit of the other contributes
            to the log-probability of its own token there, ``[edits]``; None elsewhere and where it was not asked for.
        chat: Whether it was asked in the model's chat template.
    """

    prompt: str
    number: int
    first: Side
    second: Side
    kl: tuple[float, ...]
    parts_at: int | None
    common: str
    contributions: Float[Tensor, " edits"] | None = None
    chat: bool = False

    @property
    def next_kl(self) -> float:
        """KL at the next token, in nats."""
        return self.kl[0]

    @property
    def continuation_kl(self) -> float:
        """Sum over the tokens of the first state's continuation, the next one among them, in nats."""
        return sum(self.kl)


@dataclass(frozen=True)
class Difference:
    """Two states of a model on some prompts.

    Attributes:
        first: One state.
        second: The other.
        edits: Single edits of the first and of the second state; None for the base.
        prompts: The largest difference first.
        order: Which KL they are sorted by.
    """

    first: State
    second: State
    edits: tuple[EditSet | None, EditSet | None]
    prompts: tuple[PromptDifference, ...]
    order: Order

    def own(self, side: int) -> tuple[bool, ...]:
        """Of every edit of a state whether the other state has not got it."""
        edits, states = self.edits[side], (self.first, self.second)
        others = {update.id for update in states[1 - side].updates}
        ids = [update.id for update in states[side].updates]
        return () if edits is None else tuple(ids[edit.update] not in others for edit in edits.edits)


@checked
def difference(
    lm: EditableModel,
    first: State,
    second: State,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int = 16,
    order: Order = "continuation",
    top: Count = 5,
    most: Size = 10,
    progress: Watched = None,
) -> Difference:
    """Compare two states of a model on prompts; no weight is written.

    Args:
        lm: The model without edits.
        first: One state; KL is taken under its distribution, and along its continuations.
        second: The other.
        prompts: At least one text or conversation.
        new_tokens: Tokens of each continuation.
        order: Sort by the KL of the whole continuation or of the next token.
        top: Most likely next tokens that are kept.
        most: Prompts of which contributions are worked out, the largest differences first.
        progress: Counts prompts.

    Raises:
        BaseMismatchError: An update is not of this model, or was made on top of others.
        InputError: No prompt, a prompt that is too long, a setting out of range, or two times the same state.
        NumericalError: A state has weights or logits that are not finite.

    Source: KL of next-token distributions as in arXiv 2104.08164.
    """
    _check(lm, first, second, prompts, new_tokens, order)
    progress = watching(progress)
    rows = [lm.encode_prompt(prompt) for prompt in prompts]
    room = min(new_tokens, lm.max_length - max(map(len, rows)))
    if room < 1:
        longest = max(range(len(rows)), key=lambda i: len(rows[i]))
        raise InputError(
            f"the prompt {prompt_text(prompts[longest])[:60]!r}… has {len(rows[longest])} tokens and leaves no room "
            f"for a continuation in {lm.max_length}; shorten it (--prompts)"
        )
    spoken: list[list[Continuation]] = []
    compared: list[NextTokenLogProbs] = []
    for name, state in (("first state", first), ("second state", second)):
        progress.start(name, len(rows))
        with _holding(lm, state) as variant:
            spoken.append(continue_rows(variant, rows, [room] * len(rows), on_rows=progress.advance))
            compared.append(_along(variant, lm, rows, spoken[0]))
        progress.finish()
    kl = measure_drift(compared[0], compared[1], n_resamples=1).kl
    edits = tuple(None if not state.updates else edits_of(state.updates) for state in (first, second))
    firing = [None if own is None else strongest_firing(lm, own, prompts) for own in edits]
    places = [_places(continuation) for continuation in spoken[0]]
    tops = [_top(lm, found, places, top) for found in compared]
    found, start = [], 0
    for number, prompt in enumerate(prompts):
        sides = [
            Side(
                lm.decode_after(rows[number], spoken[side][number].ids),
                _texts(lm, spoken[side][number]),
                tops[side][number],
                None if (fired := firing[side]) is None else fired[number],
            )
            for side in (0, 1)
        ]
        own_kl = kl[start : start + places[number]]
        start += places[number]
        apart = _parting(spoken[0][number], spoken[1][number])
        common = lm.decode_after(rows[number], spoken[0][number].ids[:apart])
        text, in_chat = prompt_text(prompt), not isinstance(prompt, str)
        found.append(PromptDifference(text, number, sides[0], sides[1], tuple(own_kl), apart, common, chat=in_chat))
    found.sort(key=lambda row: -(row.continuation_kl if order == "continuation" else row.next_kl))
    result = Difference(first, second, (edits[0], edits[1]), tuple(found), order)
    return replace(result, prompts=_with_contributions(lm, result, rows, spoken, most))


def _check(
    lm: EditableModel, first: State, second: State, prompts: Sequence[Prompt], new_tokens: int, order: Order
) -> None:
    if lm.holds_edits:
        raise InputError(
            f"{lm.name!r} holds edits; expected the unedited model, beside which both states are tried: roll back "
            "first (session.rollback())"
        )
    if not prompts:
        raise InputError("there is no prompt to compare on; expected at least one (--prompts FILE)")
    if new_tokens < 1:
        raise InputError(f"a continuation has at least 1 token, found {new_tokens} (--new-tokens 16 is usual)")
    if order not in ("continuation", "next-token"):
        raise InputError(f"cannot sort by {order!r}; expected continuation or next-token (--sort)")
    if [update.id for update in first.updates] == [update.id for update in second.updates]:
        raise InputError(f"{first.name!r} and {second.name!r} are the same state; expected two that differ")


@contextmanager
def _holding(lm: EditableModel, state: State) -> Iterator[EditableModel]:
    """An isolated model in a state: bit for bit the weights that a session writes."""
    parts: dict[int, list[LayerUpdate]] = {}
    earlier = UNEDITED
    for update in state.updates:
        check_update(lm, update, earlier)
        earlier = earlier.then(update.id)
        for part in update.layers:
            parts.setdefault(part.layer, []).append(part)
    weights = {layer: edited_weight(lm.weight(layer), own) for layer, own in parts.items()}
    for layer, weight in weights.items():
        if not weight.to(lm.dtype).isfinite().all():
            raise NumericalError(
                f"{state.name!r} has weights at layer {layer} that are not finite in {lm.dtype}; expected finite "
                "ones: load the model with --dtype float32"
            )
    with lm.isolated(weights, edited=bool(weights)) as variant:
        yield variant


def _places(continuation: Continuation) -> int:
    """Tokens that were predicted: those of the continuation, and the end of text where it came."""
    return len(continuation.ids) + continuation.stopped


def _along(
    variant: EditableModel, lm: EditableModel, rows: Sequence[Sequence[int]], path: Sequence[Continuation]
) -> NextTokenLogProbs:
    """What a state says next along given continuations; the unembedding is that of the model itself."""
    whole = [[*row, *continuation.ids] for row, continuation in zip(rows, path, strict=True)]
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for group in pack_by_tokens([len(ids) for ids in whole], _TOKENS):
        hidden = variant.final_hidden(variant.batch([whole[i] for i in group]))
        for place, row in enumerate(group):
            first = len(rows[row]) - 1
            found[row] = hidden[place, first : first + _places(path[row])].clone()
    names = [f"{row}:{place}" for row, hidden in enumerate(found) for place in range(len(hidden))]
    return NextTokenLogProbs.of(lm, names, torch.cat(found))


def _top(
    lm: EditableModel, found: NextTokenLogProbs, places: Sequence[int], most: int
) -> list[tuple[tuple[str, float], ...]]:
    """The most likely next tokens after every prompt."""
    starts = torch.tensor([0, *places[:-1]]).cumsum(dim=0)
    hidden = found.hidden[starts].to(lm.device)
    tops = []
    for row in hidden:
        values, tokens = lm.unembed(row[None])[0].log_softmax(dim=-1).exp().topk(most)
        texts = [_text(lm, token) for token in tokens.tolist()]
        tops.append(tuple(zip(texts, values.tolist(), strict=True)))
    return tops


def _parting(first: Continuation, second: Continuation) -> int | None:
    """The token at which two continuations part; an end of text is a token too."""
    for at, (a, b) in enumerate(zip(first.ids, second.ids, strict=False)):
        if a != b:
            return at
    if len(first.ids) == len(second.ids) and first.stopped == second.stopped:
        return None
    return min(len(first.ids), len(second.ids))


def _texts(lm: EditableModel, continuation: Continuation) -> tuple[str, ...]:
    texts = tuple(_text(lm, token) for token in continuation.ids)
    return (*texts, "(end)") if continuation.stopped else texts


def _text(lm: EditableModel, token: int) -> str:
    return "(end)" if token in lm.stop_ids else lm.decode([token])


def _with_contributions(
    lm: EditableModel,
    found: Difference,
    rows: Sequence[Sequence[int]],
    spoken: Sequence[Sequence[Continuation]],
    most: int,
) -> tuple[PromptDifference, ...]:
    """Contributions to the first token in which the continuations part, of the edits of the one state that has any."""
    edited = [side for side in (0, 1) if found.edits[side] is not None]
    if len(edited) != 1:
        return found.prompts
    (side,) = edited
    edits = found.edits[side]
    assert edits is not None
    changed = []
    for place, row in enumerate(found.prompts):
        said = spoken[side][row.number].ids
        if place >= most or row.parts_at is None or row.parts_at >= len(said):
            changed.append(row)
            continue
        asked = Asked((*rows[row.number], *said[: row.parts_at]), (said[row.parts_at],))
        changed.append(replace(row, contributions=attribute(lm, edits, asked).by_edit))
    return tuple(changed)
