"""The updates of a sum: what each of them holds already, and which were planned on which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise
from typing import Any

from emendo.errors import InputError
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import ModelUpdate


@dataclass(frozen=True, eq=False)
class Part:
    """An update of a sum. Its identity is a digest of all its tensors, and so is taken once.

    Attributes:
        number: Its place in the sum, from 1.
        update: The update.
        id: Its identity.
        within: Identities of what it was merged from.
        inner_ends: Digests of the states after each of those.
    """

    number: int
    update: ModelUpdate
    id: str
    within: frozenset[str]
    inner_ends: frozenset[str]

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"update {self.number} ({self.id[:12]}…)"

    @cached_property
    def identities(self) -> frozenset[str]:
        """Of itself and of what it was merged from."""
        return self.within | {self.id}

    @cached_property
    def ends(self) -> frozenset[str]:
        """Digests of the states that it, or something inside it, was the last update of (`Predecessors.chain`)."""
        return self.inner_ends | {self.update.preceding.then(self.id).chain}

    @property
    def requests(self) -> list[Any]:
        """The facts that it writes, as recorded."""
        found = self.update.info.get("requests", [])
        return found if isinstance(found, list) else [found]


def parts_of(updates: Iterable[ModelUpdate]) -> list[Part]:
    """The updates of a sum, no two of which hold the same one.

    Raises:
        InputError: Two hold the same update, or the record of a sum cannot be read.
    """
    parts: list[Part] = []
    holder: dict[str, Part] = {}
    for number, update in enumerate(updates, start=1):
        part = Part(number, update, update.id, *_merged_from(update, number))
        if held := [holder[id] for id in part.identities if id in holder]:
            other = min(held, key=lambda one: one.number)
            raise InputError(f"{other.name} and {part.name} hold the same update; give each only once")
        holder.update(dict.fromkeys(part.identities, part))
        parts.append(part)
    return parts


def _merged_from(update: ModelUpdate, number: int) -> tuple[frozenset[str], frozenset[str]]:
    """The identities of what an update was merged from, and the states after them, as its record has both."""
    rows = update.info.get("merged", [])
    try:
        ids = frozenset(str(id) for row in rows for id in (row["id"], *row["parts"]))
        return ids, frozenset(str(end) for row in rows for end in row.get("ends", []))  # sums of earlier versions: none
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"update {number} records parts that cannot be read ({error!r}), so that it cannot be known what it holds; "
            "merge it again with `emendo update merge`"
        ) from error


class Lineage:
    """Which parts of a sum were planned on which others. Each stands on one at most, which stands on the ones before.

    Args:
        parts: Of the sum.

    Raises:
        InputError: The records say that parts were planned on each other.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._ends = {end: part for part in parts for end in part.ends}
        self._holders = {id: part for part in parts for id in part.identities}
        self._below: dict[Part, Part | None] = {part: self._stands_on(part) for part in parts}
        self._outside: dict[Part, Predecessors] = {}
        self._entered: dict[Part, int] = {}
        self._left: dict[Part, int] = {}
        self._walk(parts)

    def outside(self, part: Part) -> Predecessors:
        """What a part was planned on beside the others."""
        return self._outside[part]

    def knows(self, part: Part, other: Part) -> bool:
        """Whether a part was planned on top of the other."""
        return self._entered[other] < self._entered[part] and self._left[part] < self._left[other]

    def is_sequence(self, parts: Sequence[Part]) -> bool:
        """Whether each of these was planned on top of all before it and of none after."""
        return self._below[parts[0]] is None and all(self._below[part] is one for one, part in pairwise(parts))

    def _stands_on(self, part: Part) -> Part | None:
        """The part whose state it was planned on; None where that is outside."""
        before = part.update.preceding
        if before.listed:  # of an earlier version, which may have been planned on parts of a sum of such a version
            return next((self._holders[id] for id in reversed(before.listed) if id in self._holders), None)
        return self._ends.get(before.chain)

    def _outside_of(self, part: Part) -> Predecessors:
        before, below = part.update.preceding, self._below[part]
        if before.listed:
            return Predecessors.of(id for id in before.listed if id not in self._holders)
        return before if below is None else self._outside[below]

    def _walk(self, parts: Sequence[Part]) -> None:
        """Number each part when it is come to and when all that stands on it is done."""
        above: dict[Part | None, list[Part]] = {}
        for part, below in self._below.items():
            above.setdefault(below, []).append(part)
        clock, stack = count(), list(above.get(None, []))
        while stack:
            part = stack.pop()
            if part in self._entered:
                self._left[part] = next(clock)
            else:
                self._entered[part] = next(clock)
                self._outside[part] = self._outside_of(part)
                stack += [part, *above.get(part, [])]
        if lost := [part for part in parts if part not in self._entered]:
            raise InputError(
                f"{len(lost)} updates, {lost[0].name} among them, are recorded as planned on one another, which no "
                "edit can give; merge the parts of each again with `emendo update merge`"
            )
