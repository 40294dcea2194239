"""Which facts stand under one key: requests of a batch that share one value, and facts that earlier edits wrote there.

A key is what the down-projection reads at the subject's last token, and nothing after that token can change it. So
requests whose tokens are equal up to it have one key, in every context and at every layer, and one key can have one
value alone: they share a search. What an earlier edit wrote under the key is replaced by the new value, which
therefore goes on to hold those facts too, and the earlier key is no longer one to be preserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import ConflictError, EmendoError
from emendo.methods.settings import Shared
from emendo.models import EditableModel
from emendo.models.alignment import align_edit, align_prompt
from emendo.requests import EditRequest
from emendo.shapes import Keys
from emendo.updates.update import ModelUpdate

KeyTokens: TypeAlias = tuple[int, ...]
"""All tokens of a prompt up to its subject's last: what its key depends on."""


def key_tokens(lm: EditableModel, request: EditRequest) -> KeyTokens:
    """The tokens that a request's key depends on.

    Raises:
        RequestError: The request cannot be aligned.
    """
    prompt = align_prompt(lm, request)
    return prompt.ids[: prompt.subject_last + 1]


def share_groups(lm: EditableModel, requests: Sequence[EditRequest], shared: Shared) -> list[list[int]]:
    """Which requests share one v*, as indices, in the order of their first.

    Args:
        lm: Gives the tokens.
        requests: The facts to write.
        shared: ``"key"``: those with one key; ``"subject"``: those on one subject, wherever it stands;
            ``"request"``: none.

    Raises:
        RequestError: A request cannot be aligned.
    """
    groups: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        if shared == "key":
            what: object = key_tokens(lm, request)
        else:
            what = request.subject.strip() if shared == "subject" else index
        groups.setdefault(what, []).append(index)
    return list(groups.values())


def refuse_contradictions(lm: EditableModel, requests: Sequence[EditRequest], groups: Sequence[Sequence[int]]) -> None:
    """Refuse requests that share a value and are one prompt to the model, though their texts differ.

    Args:
        lm: Gives the tokens.
        requests: The facts to write.
        groups: Those that share one value.

    Raises:
        ConflictError: Names every such pair.
    """
    problems = []
    for group in groups:
        asked: dict[KeyTokens, tuple[EditRequest, KeyTokens]] = {}
        for request in (requests[index] for index in group) if len(group) > 1 else ():
            edit = align_edit(lm, request)
            other, target = asked.setdefault(edit.prompt.ids, (request, edit.target_ids))
            if other is not request:
                kind = "repeated" if target == edit.target_ids else "contradicting"
                problems.append(
                    f"{kind}: {other.text!r} → {other.target!r} and {request.text!r} → {request.target!r} have the "
                    "same tokens"
                )
    if problems:
        raise ConflictError(
            f"{len(problems)} fact(s) are requested more than once, as the model reads them; keep one for each:",
            problems,
        )


def group_means(rows: Float[Tensor, "n d"], groups: Sequence[Sequence[int]]) -> Float[Tensor, "groups d"]:
    """The mean row of each group.

    Args:
        rows: One a request.
        groups: Indices of rows.
    """
    if len(groups) == len(rows):
        return rows
    return torch.stack([rows[list(group)].mean(dim=0) for group in groups])


@dataclass(frozen=True)
class _Written:
    """What one update wrote: the facts of each of its edits, by the tokens of their keys."""

    facts: tuple[tuple[KeyTokens, EditRequest], ...] = ()
    edits: tuple[frozenset[KeyTokens], ...] = ()
    """Keys of every edit; one, but where requests on one subject share a value."""


@dataclass(frozen=True)
class EarlierFacts:
    """What the updates in a model have written, by key.

    Attributes:
        facts: The facts that hold under each key; of one prompt the last one written.
        rows: For each layer, the keys of every row of its history; none where an update does not say.
    """

    facts: Mapping[KeyTokens, tuple[EditRequest, ...]] = field(default_factory=dict)
    rows: Mapping[int, tuple[frozenset[KeyTokens], ...]] = field(default_factory=dict)

    def kept(self, lm: EditableModel, requests: Sequence[EditRequest]) -> tuple[EditRequest, ...]:
        """Facts under the keys of some requests, which these do not write again: what a shared value has to hold too.

        Args:
            lm: Gives the tokens.
            requests: The facts to write.
        """
        if not self.facts:
            return ()
        again = {request.fact for request in requests}
        keys = dict.fromkeys(key_tokens(lm, request) for request in requests)
        found = (fact for key in keys for fact in self.facts.get(key, ()))
        return tuple(fact for fact in found if fact.fact not in again)

    def replaced(self, layer: int, keys: Iterable[KeyTokens]) -> list[int]:
        """Rows of a layer's history whose keys have another value by now, or are about to get one.

        Args:
            layer: Index of the block.
            keys: Those that are about to be written.
        """
        later, found = set(keys), []
        for number, own in reversed(list(enumerate(self.rows.get(layer, ())))):
            if own and own <= later:
                found.append(number)
            later |= own
        return found[::-1]


def rows_without(keys: Keys, rows: Sequence[int]) -> Keys:
    """Keys without some of their rows."""
    left = torch.ones(len(keys), dtype=torch.bool)
    left[list(rows)] = False
    return keys[left.to(keys.device)]


class FactIndex:
    """Reads updates into `EarlierFacts`, each of them once.

    Args:
        lm: Gives the tokens.
    """

    def __init__(self, lm: EditableModel) -> None:
        self._lm = lm
        self._known: dict[str, _Written] = {}

    def of(self, updates: Sequence[ModelUpdate], ids: Sequence[str]) -> EarlierFacts:
        """What some updates have written together.

        Args:
            updates: In the order in which they were applied.
            ids: Their identities.
        """
        facts: dict[KeyTokens, dict[str, EditRequest]] = {}
        rows: dict[int, list[frozenset[KeyTokens]]] = {}
        for update, id in zip(updates, ids, strict=True):
            written = self._written(update, id)
            for key, fact in written.facts:
                facts.setdefault(key, {})[fact.fact] = fact
            for part in update.layers:
                count = 0 if part.keys is None else len(part.keys)
                told = written.edits if len(written.edits) == count else (frozenset(),) * count
                rows.setdefault(part.layer, []).extend(told)
        return EarlierFacts(
            {key: tuple(each.values()) for key, each in facts.items()},
            {layer: tuple(each) for layer, each in rows.items()},
        )

    def keys_of(self, update: ModelUpdate, id: str) -> frozenset[KeyTokens]:
        """The keys that an update has written.

        Args:
            update: The update.
            id: Its identity.
        """
        return frozenset().union(*self._written(update, id).edits)

    def _written(self, update: ModelUpdate, id: str) -> _Written:
        if id not in self._known:
            self._known[id] = self._read(update)
        return self._known[id]

    def _read(self, update: ModelUpdate) -> _Written:
        """Nothing of an update that writes no weights, or only a part of what it records."""
        if not update.layers or "scaled" in update.info:
            return _Written()
        facts, edits = [], []
        for group in update.groups:
            read = [self._fact(row) for row in group]
            facts += [each for each in read if each is not None]
            edits.append(frozenset(each[0] for each in read if each is not None))
        return _Written(tuple(facts), tuple(edits))

    def _fact(self, row: Mapping[str, Any]) -> tuple[KeyTokens, EditRequest] | None:
        """A recorded request with its key; None of one that this model cannot read, as in a file from elsewhere."""
        try:
            request = EditRequest.from_dict(row)
            return key_tokens(self._lm, request), request
        except (EmendoError, TypeError):
            return None
