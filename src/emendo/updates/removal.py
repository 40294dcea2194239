"""Removing one update of an ordered sequence: the later ones' residuals and dual keys, from stored statistics.

A later edit j is kept under its keys Kⱼ and its target, the value that its prompts were to reach. With D the change of
the weights so far (at first −ΔWᵢ of the removed edit i, then also ΔWⱼ' − ΔWⱼ of each edit done), what is missing for
it changes by −Σₘ Kⱼᵐ Dᵐᵀ over the layers m that enter its measured value. Each step takes its share of that as it took
its share of the rest; the dual keys follow from the history without edit i (`history`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import checked
from emendo.errors import EmendoWarning, InfeasibleError, InputError, UndoError
from emendo.io.environment import changed_since, changes_in_words, computing
from emendo.models.base_model import differences, in_words
from emendo.shapes import DualKeys, Keys, Residuals
from emendo.solve import PreparedLayer, frobenius_norm
from emendo.solve.distribution import Step
from emendo.solve.shares import system_shares
from emendo.updates.history import History, LayerGram
from emendo.updates.measured import MeasuredChange
from emendo.updates.predecessors import UNEDITED, Predecessors
from emendo.updates.recorded import REPLAY, RecordedSolve, recorded_solve
from emendo.updates.update import LayerUpdate, ModelUpdate

REPRODUCTION_TOLERANCE = 1e-3
"""How far, relatively, stored dual keys may be from the ones that their keys, history and metric give."""

_Split: TypeAlias = Callable[[Residuals, Residuals], Residuals]


@checked
def without(
    updates: Sequence[ModelUpdate],
    index: int,
    metrics: Mapping[int, PreparedLayer],
    *,
    fingerprint: str | None = None,
) -> tuple[ModelUpdate, ...]:
    """Remove one update of a sequence by algebra: no target search, no forward pass.

    Exact for a model whose keys do not move, whose edited layers add to the measured value linearly, and whose targets
    stay what they were. A real model's upper keys depend on lower weights, and a new search would start from a model
    without the removed edit: `docs/guides/undo.md` measures the difference.

    Args:
        updates: Updates of one base in the order in which they were applied, from the first on.
        index: Which one to remove; negative counts from the end.
        metrics: Factorised f(C), without history, of each layer in `metric_layers(updates, index)`.
        fingerprint: Of the second moments in `metrics`, as ``info["moments"]["fingerprint"]`` of an update has it. None
            leaves it to the numbers: with it or without, every later update that the metric matters for has to come out
            of its own keys, history and metric again, to `REPRODUCTION_TOLERANCE`.

    Returns:
        The remaining updates. Those before the removed one are the same objects; each later one is new, names its new
        predecessors, and records under ``info["algebraic"]`` what was done to it.

    Raises:
        InputError: There is no such update, or the updates are no sequence on one base.
        UndoError: The algebra does not hold for a later update (post-steps, baselines, dropped keys, keys missing at a
            layer), or the metric is not the one that it was solved with.
        InfeasibleError: A later update's keys are dependent under equality.
    """
    later = updates[_position(updates, index) :][1:]
    recorded = [made for update in later if isinstance(made := update.info.get("computing"), dict)]
    if changed := changed_since(recorded, computing):
        warnings.warn(
            f"later updates were solved where {changes_in_words(changed)}; what is worked out anew here can differ in "
            "its last bits from what it would be there: bit for bit is not promised",
            EmendoWarning,
            stacklevel=2,
        )
    return worked_out(updates, index, metrics, fingerprint=fingerprint)


@torch.no_grad()
def worked_out(
    updates: Sequence[ModelUpdate],
    index: int,
    metrics: Mapping[int, PreparedLayer],
    *,
    fingerprint: str | None = None,
) -> tuple[ModelUpdate, ...]:
    """`without`, for callers who say themselves where the updates were made on another processor."""
    updates, ids = tuple(updates), _sequence_ids(updates)
    index = _position(updates, index)
    later = _recorded(updates, index)
    if not later:
        return updates[:index]
    grams = _layer_grams(updates, index, later, metrics, fingerprint)
    removal = _Removal(updates, ids, index, grams)
    kept, before = list(updates[:index]), updates[index].preceding
    for position, recorded in later.items():
        kept.append(removal.redone(position, recorded, before))
        before = before.then(kept[-1].id)
    return tuple(kept)


@checked
def metric_layers(updates: Sequence[ModelUpdate], index: int) -> tuple[int, ...]:
    """The layers whose metric `without` needs: none where no later update keeps a history or splits by the metric.

    Raises:
        InputError: There is no such update, or the updates are no sequence on one base.
        UndoError: The algebra does not hold for a later update.
    """
    _sequence_ids(updates)
    later = _recorded(tuple(updates), _position(updates, index))
    return tuple(sorted({layer for solved in later.values() if solved.needs_metric for layer in solved.layers}))


def _position(updates: Sequence[ModelUpdate], index: int) -> int:
    """The update's position from the start."""
    if not -len(updates) <= index < len(updates):
        raise InputError(f"there is no update {index} to remove among {len(updates)}; expected 0 to {len(updates) - 1}")
    return index % len(updates)


def _sequence_ids(updates: Sequence[ModelUpdate]) -> list[str]:
    """The identities of the updates, once they are known to be a sequence."""
    ids: list[str] = []
    before = UNEDITED
    for position, update in enumerate(updates):
        if told := differences(updates[0].base, update.base):
            raise InputError(
                f"updates 0 and {position} have different base models ({in_words(told)}); pass updates of one base"
            )
        if update.preceding != before:
            raise InputError(
                f"update {position} was planned on {update.preceding}, and before it here is {before}; pass the whole "
                "sequence in the order in which it was applied (session.applied_updates)"
            )
        ids.append(update.id)
        before = before.then(ids[-1])
    return ids


def _recorded(updates: tuple[ModelUpdate, ...], index: int) -> dict[int, RecordedSolve]:
    """How every later update was solved, by position."""
    return {
        position: recorded_solve(updates[position], f"update {position}") for position in range(index + 1, len(updates))
    }


@dataclass(frozen=True)
class _Placed:
    """One layer's keys of all updates, with and without the removed one's, and where each update's rows begin."""

    full: LayerGram
    rest: LayerGram
    start: dict[int, int]
    removed: int
    """Rows of the removed update."""


def _layer_grams(
    updates: tuple[ModelUpdate, ...],
    index: int,
    later: Mapping[int, RecordedSolve],
    metrics: Mapping[int, PreparedLayer],
    fingerprint: str | None,
) -> dict[int, _Placed]:
    """The Gram matrices of the layers whose metric is needed."""
    last = {layer: at for at, solved in later.items() if solved.needs_metric for layer in solved.layers}
    for position, solved in later.items():
        if solved.needs_metric:
            fingerprint = fingerprint or solved.fingerprint  # one set of metrics is of one
            _check_metrics(f"update {position}", solved, metrics, fingerprint)
    return {
        layer: _placed(updates, index, layer, until, metrics[layer], _remembers(later, layer))
        for layer, until in last.items()
    }


def _remembers(later: Mapping[int, RecordedSolve], layer: int) -> bool:
    """Whether some later update preserves the keys of the ones before it at a layer."""
    return any(solved.history > 0 and layer in solved.layers for solved in later.values())


def _placed(
    updates: tuple[ModelUpdate, ...], index: int, layer: int, until: int, metric: PreparedLayer, remembers: bool
) -> _Placed:
    start: dict[int, int] = {}
    keys: list[Keys] = [torch.zeros(0, metric.d_in, dtype=torch.float64, device="cpu")]
    removed = rows = 0
    for position, part in _parts(updates[: until + 1], layer):
        if part.keys is None:
            if remembers:
                raise UndoError(
                    f"update {position} has no keys for layer {layer}, and later updates preserve the edits before "
                    f"them by their keys (history.weight). {REPLAY}"
                )
            continue
        if part.keys.shape[1] != metric.d_in:
            raise UndoError(
                f"the keys of update {position} have {part.keys.shape[1]} coordinates at layer {layer} and the metric "
                f"{metric.d_in}; pass the metric of that layer"
            )
        start[position] = rows
        keys.append(part.keys.double())
        rows += len(part.keys)
        if position == index:
            removed = len(part.keys)
    full = LayerGram(metric, torch.cat(keys))
    first = start.get(index, 0)
    return _Placed(full, full.without(range(first, first + removed)), start, removed)


def _parts(updates: Sequence[ModelUpdate], layer: int) -> list[tuple[int, LayerUpdate]]:
    return [
        (position, part) for position, update in enumerate(updates) for part in update.layers if part.layer == layer
    ]


def _check_metrics(name: str, solved: RecordedSolve, metrics: Mapping[int, PreparedLayer], fingerprint: str) -> None:
    """Refuse a metric that is not the one an update was solved with."""
    if solved.fingerprint != fingerprint:
        raise UndoError(
            f"{name} was solved with second moments {solved.fingerprint[:12]}…, found {fingerprint[:12]}…; pass the "
            f"metrics of those (obtain_for_method with its moments settings and seed). {REPLAY}"
        )
    missing = [layer for layer in solved.layers if layer not in metrics]
    if missing:
        raise InputError(f"{name} needs the metric of layers {missing}, found {sorted(metrics)}; see metric_layers()")
    for layer in solved.layers:
        metric = metrics[layer]
        if metric.holds_history:
            raise InputError(
                f"the metric of layer {layer} holds a history; pass the one without, metric.with_history(None)"
            )
        if metric.asked != solved.preservation:
            raise UndoError(
                f"{name} was solved with {solved.preservation}, found a metric of {metric.preservation} for layer "
                f"{layer}; prepare it with those settings. {REPLAY}"
            )


class _Removal:
    """The sequence without the removed update, worked out edit by edit.

    Args:
        updates: The sequence.
        ids: Their identities.
        index: The removed update.
        grams: Keys by layer, where the metric is needed.
    """

    def __init__(
        self, updates: tuple[ModelUpdate, ...], ids: Sequence[str], index: int, grams: Mapping[int, _Placed]
    ) -> None:
        self._updates, self._ids, self._grams, self._removed = updates, ids, grams, ids[index]
        self._histories: dict[tuple[int, float], tuple[History, History]] = {}
        self._measured = MeasuredChange([(at, updates[at].layers) for at in range(index + 1, len(updates))])
        for part in updates[index].layers:
            self._measured.add(part.layer, -part.residuals.double().cpu(), part.dual_keys.double().cpu())

    def redone(self, position: int, solved: RecordedSolve, preceding: Predecessors) -> ModelUpdate:
        """A later update as it would have been solved, under its own keys and targets."""
        update = self._updates[position]
        self._check_reach(position, solved)
        parts = {part.layer: _Part.of(part) for part in update.layers}
        for rows in solved.batches(update.layers[0].rank):
            self._redo(position, solved, rows, parts)
        layers = tuple(parts[part.layer].like(part) for part in update.layers)
        return replace(update, layers=layers, preceding=preceding, info=self._described(position, layers))

    def _redo(self, position: int, solved: RecordedSolve, rows: range, parts: dict[int, _Part]) -> None:
        """Solve some rows again, layer by layer, and note what that changes."""
        s, own = solved.strength(len(rows)), slice(rows.start, rows.stop)
        splits = self._splits(position, solved, rows, s)
        for step, split in zip(solved.steps, splits, strict=True):
            part = parts[step.layer]
            residuals, dual_keys = part.residuals[own].clone(), part.dual_keys[own].clone()
            missing = torch.zeros_like(residuals) - self._measured.at(position, rows, self._entering(solved, step))
            part.residuals[own] = split(residuals, missing).to(part.dtype).double()
            if solved.needs_metric:
                again = self._dual_keys(position, step.layer, solved.history, rows, s, stored=dual_keys)
                part.dual_keys[own] = again.to(part.dtype).double() if solved.history > 0 else dual_keys
            # What is stored is what will be in the weights, so that is what later edits see.
            self._measured.add(
                step.layer,
                torch.cat([part.residuals[own], -residuals]),
                torch.cat([part.dual_keys[own], dual_keys]),
            )

    def _entering(self, solved: RecordedSolve, step: Step) -> list[int]:
        """The changed layers that enter what is measured for a step."""
        first, last = solved.reach(step)
        return sorted(layer for layer in self._measured.changed if (first is None or layer >= first) and layer <= last)

    def _check_reach(self, position: int, solved: RecordedSolve) -> None:
        """Every changed layer that enters an edit's measured value needs the edit's key there."""
        for step in solved.steps:
            if blind := sorted(set(self._entering(solved, step)) - set(solved.layers)):
                raise UndoError(
                    f"layers {blind} change and enter what update {position} was measured by, and it has no keys "
                    f"there: it wrote layers {list(solved.layers)}. {REPLAY}"
                )

    def _splits(self, position: int, solved: RecordedSolve, rows: range, s: float) -> list[_Split]:
        """For each step, the function from its residuals and the change of what is missing to its new residuals."""
        if not solved.splits_by_metric:
            shares = [1.0 if step.share is None else step.share for step in solved.steps]
            return [partial(_part_taken, share) for share in shares]
        old, new = [], []
        for layer in solved.layers:
            full, rest = self._history(layer, solved.history)
            at, after = self._places(position, layer, rows)
            old.append(full.system(at, len(rows), s))
            new.append(rest.system(after, len(rows), s))
        return [
            partial(_shared_anew, was, share) for was, share in zip(system_shares(old), system_shares(new), strict=True)
        ]

    def _dual_keys(self, position: int, layer: int, weight: float, rows: range, s: float, stored: DualKeys) -> DualKeys:
        """Q under the history without the removed update, once the stored Q is what the history with it gives."""
        full, rest = self._history(layer, weight)
        at, after = self._places(position, layer, rows)
        again = full.dual_keys(at, len(rows), s)
        apart = float((again - stored).norm()) / max(float(stored.norm()), torch.finfo(torch.float64).tiny)
        if not apart <= REPRODUCTION_TOLERANCE and len(rows):
            raise UndoError(
                f"the dual keys of update {position} at layer {layer} are {apart:.1e} (relatively) from the ones that "
                f"its keys, its history and this metric give; expected {REPRODUCTION_TOLERANCE:g} at most. Either the "
                f"metric is another, or its factors were changed after the solve. {REPLAY}"
            )
        return rest.dual_keys(after, len(rows), s)

    def _places(self, position: int, layer: int, rows: range) -> tuple[int, int]:
        """Where rows of an update begin, with and without the removed update before it."""
        placed = self._grams[layer]
        at = placed.start[position] + rows.start
        return at, at - placed.removed

    def _history(self, layer: int, weight: float) -> tuple[History, History]:
        """The layer's history with and without the removed update, factorised once for each weight."""
        key = layer, weight
        if key not in self._histories:
            placed = self._grams[layer]
            self._histories[key] = History(placed.full, weight), History(placed.rest, weight)
        return self._histories[key]

    def _described(self, position: int, layers: Sequence[LayerUpdate]) -> dict[str, Any]:
        """The record of an update that was worked out anew: what was measured on the old one is left out."""
        update = self._updates[position]
        earlier = update.info.get("algebraic")
        earlier = earlier if isinstance(earlier, dict) else {}
        algebraic = {
            "planned": earlier.get("planned", self._ids[position]),
            "removed": [*earlier.get("removed", []), self._removed],
            "replaces": self._ids[position],
            "relative_change": {
                str(new.layer): _apart(new, old) for new, old in zip(layers, update.layers, strict=True)
            },
        }
        return {name: value for name, value in update.info.items() if name != "layers"} | {"algebraic": algebraic}


@dataclass
class _Part:
    """A layer's tensors while they are worked on: float64 numbers that the stored dtype holds."""

    residuals: Residuals
    dual_keys: DualKeys
    dtype: torch.dtype

    @classmethod
    def of(cls, part: LayerUpdate) -> _Part:
        residuals, dual_keys = (
            tensor.to("cpu", torch.float64, copy=True) for tensor in (part.residuals, part.dual_keys)
        )
        return cls(residuals, dual_keys, part.residuals.dtype)

    def like(self, part: LayerUpdate) -> LayerUpdate:
        """An update of the same layer with these factors."""
        return replace(part, residuals=self.residuals.to(self.dtype), dual_keys=self.dual_keys.to(self.dtype))


def _part_taken(share: float, residuals: Residuals, missing: Residuals) -> Residuals:
    """The residuals of a layer that takes a fixed part of what is missing."""
    return residuals + share * missing


def _shared_anew(
    was: Float[Tensor, "n n"], share: Float[Tensor, "n n"], residuals: Residuals, missing: Residuals
) -> Residuals:
    """The same for a share that follows the metric: R = S M was taken, so S⁻¹ R was missing; S' is its share now."""
    whole, info = torch.linalg.solve_ex(was, residuals)
    if info.item():
        raise InfeasibleError(
            "the stored keys of an edit are dependent at one of its layers, so that what it was missing there cannot "
            f"be found again; expected independent keys. {REPLAY}"
        )
    taken: Tensor = share @ (whole + missing)
    return taken


def _apart(new: LayerUpdate, old: LayerUpdate) -> float:
    """Relative Frobenius distance of a layer's ΔW from what it was."""
    size = frobenius_norm(old.residuals, old.dual_keys)
    residuals, dual_keys = torch.cat([new.residuals, -old.residuals]), torch.cat([new.dual_keys, old.dual_keys])
    return frobenius_norm(residuals, dual_keys) / size if size else 0.0
