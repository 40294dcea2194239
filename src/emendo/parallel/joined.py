"""One of several processes that share a folder and know nothing of each other but their claims in it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from emendo.errors import ClaimLostError, WorkerError
from emendo.parallel.claims import RENEW, STALE, Claim, Claims, here
from emendo.parallel.recipe import code_differences, code_identity
from emendo.parallel.units import Finished, Recipe, Unit
from emendo.progress import Progress

_POLL = 0.5
"""Seconds between two looks at what others are doing, where nothing is left to begin."""

_MEMBER = "member-"


class Joined:
    """Takes units that nobody else has, until all are done, by whomever.

    Args:
        renew: See `Claims`.
        stale: See `Claims`.
        member: Say in the folder who works there, and refuse others of another kind; False where somebody else sees to
            that.
    """

    here, shared = True, True

    def __init__(self, *, renew: float = RENEW, stale: float = STALE, member: bool = True) -> None:
        self.renew, self.stale, self.member = renew, stale, member

    def map(
        self,
        recipe: Recipe,
        units: Iterable[Unit],
        folder: Path,
        *,
        title: str = "units",
        progress: Progress | None = None,
    ) -> Iterator[Finished]:
        """See `Workers.map`; yields also what others have done.

        Raises:
            WorkerError: Another version of Emendo, or another kind of processor, is at work in the folder.
        """
        left = {unit.id: unit for unit in units}
        claims = Claims(folder, renew=self.renew, stale=self.stale)
        names = set(left)
        world = recipe.build(progress=progress)
        world.among_others = True
        with self._member(claims, str(world.lm.device)) if self.member else nullcontext():
            while left:
                before = len(left)
                for unit in list(left.values()):
                    finished = Finished(unit.id) if unit.done(folder) else None
                    if finished is None and (claim := claims.take(unit.id)) is not None:
                        begin = time.perf_counter()
                        try:
                            world.do(unit, folder, claim)
                        except ClaimLostError:  # whoever took it does it
                            continue
                        finished = Finished(unit.id, "this process", time.perf_counter() - begin)
                    if finished is not None:
                        del left[unit.id]
                        yield finished
                if left and len(left) == before:
                    time.sleep(min(_POLL, self.stale / 4))
        claims.sweep(lambda name: name in names)

    def _member(self, claims: Claims, device: str) -> Claim:
        """The claim that says who works here and with what; others of another kind are refused."""
        mine = code_identity(device)
        name = f"{_MEMBER}{here()['host']}-{os.getpid()}"
        member = claims.take(name)
        while member is None:  # left by a process of the same number: stale at once, or after a while
            time.sleep(min(1.0, self.stale / 4))
            member = claims.take(name)
        member.say(mine)
        for other in claims.owners(_MEMBER):
            if told := _differences(other, mine):
                member.release()
                raise WorkerError(
                    f"the process {other['pid']} on {other['host']!r} is at work in this folder with something else: "
                    f"{'; '.join(told)}. Results of the two would be mixed; start all with the same"
                )
        return member


def _differences(other: Mapping[str, Any], mine: Mapping[str, str]) -> list[str]:
    return code_differences(other.get("says") or mine, mine)
