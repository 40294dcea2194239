"""What a worker in another process sends home: steps of its unit, notes, results and errors."""

from __future__ import annotations

import pickle
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emendo.errors import EmendoError, EmendoWarning, WorkerError
from emendo.parallel.units import Unit, World

_EVERY = 0.2
"""Seconds between two messages about steps."""


class Relay:
    """Progress that passes the steps of one stage on.

    Args:
        send: Takes the number of steps that the unit has taken so far.
    """

    def __init__(self, send: Callable[[int], None]) -> None:
        self.send = send
        self._title = self._stage = ""
        self._steps, self._sent = 0, 0.0

    def begin(self, title: str) -> None:
        """A unit begins; `title` is its stage that counts."""
        self._title, self._stage, self._steps = title, "", 0

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage."""
        self._stage = stage

    def advance(self, n: int = 1) -> None:
        """Count steps, and tell of them now and then."""
        if self._stage == self._title:
            self._steps += n
            if time.monotonic() - self._sent >= _EVERY:
                self.send(self._steps)
                self._sent = time.monotonic()

    def finish(self) -> None:
        """End a stage; what was not told is told with the unit."""
        self._stage = ""


@contextmanager
def relayed_notes(send: Callable[[str], None]) -> Iterator[None]:
    """Emendo's warnings go to `send`, whose process shows them; other warnings as Python shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", EmendoWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
            if issubclass(category, EmendoWarning):
                send(str(message))
            else:
                shown(message, category, *where, **more)  # type: ignore[arg-type]

        warnings.showwarning = show
        yield


def done_or_failed(world: World, unit: Unit, folder: Path, relay: Relay) -> tuple[str, Any]:
    """Do a unit among other workers: ("finished", seconds), or ("failed", the error, packed)."""
    relay.begin(unit.title)
    begin = time.perf_counter()
    try:
        with world.claims(folder).hold(unit.id) as claim:
            world.do(unit, folder, claim)
        return "finished", time.perf_counter() - begin
    except Exception as error:
        return "failed", packed(error)


def packed(error: BaseException) -> bytes:
    """An error as it travels: itself where it can, else its text."""
    if isinstance(error, EmendoError):
        try:
            content = pickle.dumps(error)
            if str(pickle.loads(content)) == str(error):
                return content
        except Exception:  # pickling runs code of the error's class, which can fail in any way
            pass
        return pickle.dumps(WorkerError(str(error)))
    text = "".join(traceback.format_exception(error))
    return pickle.dumps(WorkerError(f"a worker failed with {type(error).__name__}: {error}\n{text}"))


def unpacked(content: bytes) -> EmendoError:
    """What `packed` packed; the bytes come from a process that this one has started."""
    error = pickle.loads(content)
    assert isinstance(error, EmendoError)
    return error
