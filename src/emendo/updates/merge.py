"""The sum of updates on one base, and what each of them is still worth in it.

Two updates may be added in two situations. Where one was planned on top of the other, the sum is the state of the model
after both. Where they were planned apart, on the same earlier updates, each was solved without the other: the sum is
*not* the edit that planning them together gives, and each loses or gains ΔW_other k at its own keys k. `survival`
measures that at the keys; what flows from layer to layer inside a model is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from emendo.arguments import Measured, checked
from emendo.errors import BaseMismatchError, ConflictError, InputError
from emendo.models.base_model import differences, fullest, in_words
from emendo.requests import EditRequest
from emendo.solve import retained
from emendo.updates.parts import Lineage, Part, parts_of
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers


@dataclass(frozen=True)
class Survival:
    """What one update still writes at its own keys in a sum of updates.

    Attributes:
        update: Its identity.
        layer: The layer.
        shares: For each of its keys, the part of what it writes there alone that the sum gives, along the same
            direction: 1 is all, 0 nothing, above 1 more than it wanted. NaN where it writes nothing.
    """

    update: str
    layer: int
    shares: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean share; None where there is none."""
        known = self._known
        return sum(known) / len(known) if known else None

    @property
    def least(self) -> float | None:
        """Smallest share; None where there is none."""
        return min(self._known, default=None)

    @property
    def most(self) -> float | None:
        """Largest share: facts that several updates write are far above 1."""
        return max(self._known, default=None)

    @property
    def _known(self) -> list[float]:
        return [share for share in self.shares if math.isfinite(share)]

    def to_dict(self) -> dict[str, Any]:
        """The layer and the figures, as JSON values."""
        return {"layer": self.layer, "mean": self.mean, "least": self.least, "most": self.most}


@checked
def merge(updates: Sequence[ModelUpdate | Sequence[ModelUpdate]]) -> ModelUpdate:
    """The sum of updates, as one update.

    Its factors and keys are theirs, stacked in the order given; the order changes the identity and nothing else. Its
    predecessors are those that all of them share. ``info["merged"]`` names every part with its `survival`. Adding
    float32 factors is exact; that the sum is one matrix product and not several changes the weights in the last bit.

    Args:
        updates: Updates, or sequences of them, such as what two ledgers hold.

    Returns:
        The sum; a single update comes back as it is.

    Raises:
        InputError: Nothing to merge, the same update twice, or parts of different shapes.
        BaseMismatchError: Different base models, or an update planned on others that are not in the sum.
        ConflictError: Updates that do not know of each other write the same fact; all such facts are named.
    """
    parts = parts_of(_flat(updates))
    if not parts:
        raise InputError("there is nothing to merge; expected at least one update")
    if len(parts) == 1:
        return parts[0].update
    _check_base(parts)
    lineage = Lineage(parts)
    preceding = _shared_predecessors(parts, lineage)
    _check_facts(parts, lineage)
    survivals = _survivals(parts, lineage)
    info: dict[str, Any] = {
        "requests": [request for part in parts for request in part.requests],
        **_groups(parts),
        "merged": [_entry(part, lineage, found) for part, found in zip(parts, survivals, strict=True)],
    }
    layers = merge_layers([layer for part in parts for layer in part.update.layers])
    return ModelUpdate(layers, fullest(part.update.base for part in parts), preceding, info)


@checked
def scale(update: ModelUpdate, factor: Measured) -> ModelUpdate:
    """The update times a number: 0.5 for half of it, −1 to take it away from weights that hold it.

    Its keys stay. It is no longer a solution of its method's equations, so what was measured on it is left out of its
    record, and `emendo.updates.without` refuses to work it out anew.

    Args:
        update: What to scale.
        factor: Any finite number.

    Raises:
        InputError: The factor, or a scaled entry, is not finite.
    """
    if not math.isfinite(factor):
        raise InputError(f"the factor is {factor}; expected a finite number (--factor 0.5)")
    layers = tuple(replace(layer, residuals=layer.residuals * factor) for layer in update.layers)
    for layer in layers:
        if not layer.residuals.isfinite().all():
            raise InputError(
                f"the update of layer {layer.layer} times {factor:g} is not finite in {layer.residuals.dtype}; "
                "expected a finite update and a smaller factor (--factor 0.5)"
            )
    info = {name: value for name, value in update.info.items() if name != "layers"}
    info["scaled"] = {"factor": factor, "from": update.id}
    return replace(update, layers=layers, info=info)


@checked
def survival(updates: Sequence[ModelUpdate], position: int) -> tuple[Survival, ...]:
    """What an update still writes at its own keys once those that it does not know are added.

    An update knows the ones that it was planned on: its residuals allow for them. So in a sequence this is what later
    updates leave of it, and among updates that were planned apart what all others do.

    Args:
        updates: The parts of a sum.
        position: Which of them.

    Returns:
        One entry for each of its layers whose keys are known.
    """
    parts = parts_of(updates)
    if not 0 <= position < len(parts):
        raise InputError(f"there are {len(parts)} updates, and found position {position}; expected one of theirs")
    return _survival(parts, parts[position], Lineage(parts))


def _entry(part: Part, lineage: Lineage, survivals: Sequence[Survival]) -> dict[str, Any]:
    """How the record of a sum names a part.

    What it was planned on is only counted: each part of a long sequence would repeat all before it.
    """
    method = part.update.info.get("method")
    return {
        "id": part.id,
        "parts": sorted(part.within),
        "ends": sorted(part.ends),
        "on_parts": len(part.update.preceding) - len(lineage.outside(part)),
        "method": method.get("name") if isinstance(method, dict) else None,
        "requests": len(part.requests),
        "survives": [entry.to_dict() for entry in survivals],
    }


def _flat(updates: Sequence[ModelUpdate | Sequence[ModelUpdate]]) -> Iterator[ModelUpdate]:
    for entry in updates:
        yield from (entry,) if isinstance(entry, ModelUpdate) else entry


@torch.no_grad()
def _survivals(parts: Sequence[Part], lineage: Lineage) -> list[tuple[Survival, ...]]:
    """`_survival` of every part, at a cost that grows with their number alone where each knows all before it."""
    if not lineage.is_sequence(parts):
        return [_survival(parts, part, lineage) for part in parts]
    later: dict[int, LayerUpdate] = {}
    found = []
    for part in reversed(parts):
        for own in part.update.layers:
            bare = replace(own, keys=None)
            seen = [bare, later[own.layer]] if own.layer in later else [bare]
            later[own.layer] = merge_layers(seen)[0].compacted()
        found.append(_shares(part, later))
    return found[::-1]


@torch.no_grad()
def _survival(parts: Sequence[Part], part: Part, lineage: Lineage) -> tuple[Survival, ...]:
    seen = [layer for other in parts if not lineage.knows(part, other) for layer in other.update.layers]
    own = {layer.layer for layer in part.update.layers}
    return _shares(part, {layer.layer: layer for layer in merge_layers([each for each in seen if each.layer in own])})


def _shares(part: Part, totals: Mapping[int, LayerUpdate]) -> tuple[Survival, ...]:
    """What a part writes at its own keys in the sum of itself and of what it does not know, by layer."""
    found = []
    for own in part.update.layers:
        if own.keys is not None:
            total = totals[own.layer]
            shares = retained(total.residuals, total.dual_keys, own.keys, own.at(own.keys))
            found.append(Survival(part.id, own.layer, tuple(shares.tolist())))
    return tuple(found)


def _groups(parts: Sequence[Part]) -> dict[str, Any]:
    """Which requests of the sum share an edit, where any do."""
    if not any("groups" in part.update.info for part in parts):
        return {}
    groups: list[list[int]] = []
    start = 0
    for part in parts:
        alone = [[index] for index in range(len(part.requests))]
        groups += [[start + index for index in group] for group in part.update.info.get("groups", alone)]
        start += len(part.requests)
    return {"groups": groups}


def _check_base(parts: Sequence[Part]) -> None:
    first = fullest(part.update.base for part in parts)
    for part in parts:
        base = part.update.base
        if not (weights := base.get("weights_sha256")):
            raise BaseMismatchError(
                f"{part.name} does not say for which weights it was made, so it cannot be added to others; "
                "plan it again with session.plan(...)"
            )
        if told := differences(first, base):
            raise BaseMismatchError(
                f"{part.name} was made for {base.get('name')!r} with weights {weights[:12]}…, which is not the model "
                f"of the others here: {in_words(told)}; only updates of one base can be added. Plan one of them again "
                "on the other's base"
            )


def _shared_predecessors(parts: Sequence[Part], lineage: Lineage) -> Predecessors:
    """What all parts were planned on, beside each other."""
    shared = lineage.outside(parts[0])
    for part in parts:
        if (others := lineage.outside(part)) != shared:
            raise BaseMismatchError(
                f"beside the updates given here, {parts[0].name} was planned on {shared} and {part.name} on {others}; "
                "give those too, or plan one of the two again on what the other was planned on"
            )
    return shared


def _check_facts(parts: Sequence[Part], lineage: Lineage) -> None:
    """Refuse updates that do not know of each other and write the same fact: the sum would write it twice."""
    facts: dict[str, list[tuple[Part, EditRequest]]] = {}
    for part in parts:
        for row in part.requests:
            request = _request(part, row)
            facts.setdefault(request.fact, []).append((part, request))
    problems = []
    for same in facts.values():
        for (part, request), (other, again) in combinations(same, 2):
            if part is not other and not lineage.knows(part, other) and not lineage.knows(other, part):
                kind = "repeated" if request.answer == again.answer else "contradicting"
                problems.append(
                    f"{kind}: {request.text!r} → {request.target!r} in {part.name}, {again.target!r} in {other.name}"
                )
    if problems:
        raise ConflictError(
            f"{len(problems)} fact(s) are written by updates that were planned apart, and a sum would write them "
            "twice; plan one update again without them, or on top of the other:",
            problems,
        )


def _request(part: Part, row: Any) -> EditRequest:
    try:
        return EditRequest.from_dict(row)
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{part.name} records a request that cannot be read ({error!r}), so that conflicts with others cannot be "
            "ruled out; make it again with `emendo edit --out FOLDER`"
        ) from error
