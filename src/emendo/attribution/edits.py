"""Updates seen as single edits: each reads with its dual keys and writes its residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from emendo.arguments import check_width, checked
from emendo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from emendo.updates.stored import StoredUpdate
    from emendo.updates.update import ModelUpdate

    Update: TypeAlias = ModelUpdate | StoredUpdate

Factor: TypeAlias = Float[np.ndarray, "rows width"]


@dataclass(frozen=True)
class Edit:
    """What a person made: one request or several that share a value; or an update whose rows are no single edits.

    Attributes:
        label: Short name: subject and target.
        requests: What it writes, as update files record them.
        update: Which of the updates it belongs to.
        whole: Whether it stands for a whole update, whose rows were mixed (folded, RECT, PRUNE, fine-tuning).
    """

    label: str
    requests: tuple[Mapping[str, Any], ...]
    update: int
    whole: bool


@dataclass(frozen=True)
class EditSet:
    """All edits of some updates, by layer; arrays, since much can be said of them without a model and torch.

    Attributes:
        edits: In the order of the updates and their rows.
        owner: Edit of every row of the factors, ``[rows]``.
        factors: Q ``[rows, d_in]`` and R ``[rows, d_out]`` of every layer, zero where a row does not write it.
        keys: The keys that were written, ``[rows, d_in]``, where every update knows them and no edit is whole.
    """

    edits: tuple[Edit, ...]
    owner: Int[np.ndarray, " rows"]
    factors: Mapping[int, tuple[Factor, Factor]]
    keys: Mapping[int, Factor] | None

    @property
    def layers(self) -> list[int]:
        """Written layers, ascending."""
        return sorted(self.factors)

    @checked
    def by_edit(self, rows: Float[Tensor, "*shape rows"]) -> Float[Tensor, "*shape edits"]:
        """Sums of rows by the edit that owns them."""
        check_width("rows", rows, len(self.owner))
        total = rows.new_zeros(*rows.shape[:-1], len(self.edits))
        return total.index_add(-1, self._owner(rows), rows)

    @checked
    def strengths(self, edits: Float[Tensor, "batch edits"]) -> Float[Tensor, "batch rows"]:
        """Strength of every row, from that of every edit."""
        return edits[:, self._owner(edits)]

    def _owner(self, like: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(self.owner).to(like.device)


@checked
def edits_of(updates: Sequence[Update]) -> EditSet:
    """The single edits of updates that are in a model together.

    Rows are single edits where a layer has as many rows as the update records edits. An update of which that is not
    true is one edit as a whole.

    Raises:
        InputError: There is no update, none writes a layer, or two of them do not belong to one model.
    """
    if strange := [update for update in updates if not hasattr(update, "layers")]:
        raise InputError(f"found a {type(strange[0]).__name__} among the updates; expected ModelUpdates (updates=)")
    if not updates or not any(update.layers for update in updates):
        raise InputError("these updates write no layer; expected at least one that does (an in-context edit has none)")
    edits: list[Edit] = []
    owner: list[int] = []
    spans: list[tuple[int, int]] = []
    for number, update in enumerate(updates):
        first = len(owner)
        single = single_edits(update)
        if single is None:
            rows = max((part.rank for part in update.layers), default=0)
            owner += [len(edits)] * rows
            edits.append(Edit(_name(update, number), tuple(update.requests), number, whole=True))
        else:
            owner += range(len(edits), len(edits) + len(single))
            edits += [Edit(_label(group), tuple(group), number, whole=False) for group in single]
        spans.append((first, len(owner)))
    factors = _stacked(updates, spans, len(owner))
    keys = _keys(updates, spans, len(owner)) if not any(edit.whole for edit in edits) else None
    return EditSet(tuple(edits), np.array(owner, dtype=np.int64), factors, keys)


def single_edits(update: Update) -> list[list[Mapping[str, Any]]] | None:
    """The requests of every row of an update; None where its rows are no single edits."""
    listed = update.groups
    written = [part for part in update.layers if part.rank]
    as_many = all(part.rank == len(listed) and part.keys is not None for part in written)
    return listed if listed and written and as_many else None


def _label(group: Sequence[Mapping[str, Any]]) -> str:
    return " + ".join(dict.fromkeys(f"{row.get('subject', '?')} → {row.get('target', '?')}" for row in group))


def _name(update: Update, number: int) -> str:
    return f"update {number + 1} ({update.id[:8]}, {len(update.requests)} requests)"


def _stacked(
    updates: Sequence[Update], spans: Sequence[tuple[int, int]], rows: int
) -> dict[int, tuple[Factor, Factor]]:
    """Factors of every layer with the same rows, zero where an update does not write the layer."""
    sizes: dict[int, tuple[int, int]] = {}
    for update in updates:
        for part in update.layers:
            size = part.dual_keys.shape[1], part.residuals.shape[1]
            if sizes.setdefault(part.layer, size) != size:
                raise InputError(
                    f"layer {part.layer} is written as {size} and as {sizes[part.layer]} [d_in, d_out]: these updates "
                    "belong to different models; expected updates of one"
                )
    found = {
        layer: (np.zeros((rows, d_in), np.float32), np.zeros((rows, d_out), np.float32))
        for layer, (d_in, d_out) in sorted(sizes.items())
    }
    for update, (first, _) in zip(updates, spans, strict=True):
        for part in update.layers:
            at = slice(first, first + part.rank)
            found[part.layer][0][at], found[part.layer][1][at] = _array(part.dual_keys), _array(part.residuals)
    return found


def _keys(updates: Sequence[Update], spans: Sequence[tuple[int, int]], rows: int) -> dict[int, Factor]:
    found: dict[int, np.ndarray] = {}
    for update, (first, last) in zip(updates, spans, strict=True):
        for part in update.layers:
            if part.keys is not None:
                kept = found.setdefault(part.layer, np.zeros((rows, part.dual_keys.shape[1]), np.float32))
                kept[first:last] = _array(part.keys)
    return found


def _array(values: Any) -> np.ndarray:
    """An array or a tensor of any device and dtype as float32."""
    if not isinstance(values, np.ndarray):
        values = values.detach().float().cpu().numpy()
    found: np.ndarray = values.astype(np.float32, copy=False)
    return found
