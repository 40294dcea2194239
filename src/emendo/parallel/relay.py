"""What a worker in another process sends home: steps of its unit, notes, results and errors."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import emendo.errors as errors
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


def packed(error: BaseException) -> dict[str, Any]:
    """An error as it travels: one of Emendo's by its name, another one as a text with its traceback."""
    if isinstance(error, EmendoError):
        kind = type(error).__name__
        return {"kind": kind, "text": str(error), "problems": list(getattr(error, "problems", ()))}
    text = "".join(traceback.format_exception(error))
    return {"kind": "WorkerError", "text": f"a worker failed with {type(error).__name__}: {error}\n{text}"}


def unpacked(content: Mapping[str, Any]) -> EmendoError:
    """The error that `packed` packed; a WorkerError where its class is not one of Emendo's."""
    kind = getattr(errors, content["kind"], WorkerError)
    if not (isinstance(kind, type) and issubclass(kind, EmendoError)):
        kind = WorkerError
    error = kind.__new__(kind)  # some classes put their text together from parts, which has been done
    error.args = (content["text"],)
    if content.get("problems"):
        error.problems = tuple(content["problems"])  # type: ignore[attr-defined]
    return error
