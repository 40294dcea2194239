"""Ctrl-C at a chosen line or bytecode of the code that writes a model, once or twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

from emendo.editing import held_edits, held_model
from emendo.models import access, contents, decoder, edited_map, mixture, quantised_map
from emendo.models.contents import WeightContents

WRITERS = {
    str(module.__file__): module.__name__
    for module in (held_model, held_edits, contents, access, decoder, edited_map, mixture, quantised_map)
}
"""Where it is settled who may write a model and what, and where it is written: names of modules by file.

Imported, so that a module with another name cannot be missed; a test wants lines of each to run.
"""

SETTLING = frozenset(module.__name__ for module in (held_model, contents, access))
"""Of those, where it is settled what a model holds: an interrupt at any of their lines is one of a kind."""


class Interrupter:
    """Raises KeyboardInterrupt at one event of the code that writes a model, counted from 0.

    Args:
        at: The event.
        again: A second one is raised so many events into whatever then puts things in order; None: there is none.
        event: ``"line"`` or ``"opcode"``.
        modules: Names of those whose events count; all of `WRITERS` unless given.

    Attributes:
        raised: How many interrupts there were.
        ran: Names of the modules of `WRITERS` that were come to.
    """

    def __init__(
        self,
        at: int,
        again: int | None = None,
        event: str = "line",
        modules: Collection[str] = frozenset(WRITERS.values()),
    ) -> None:
        self._left, self._again, self._event, self._modules = at, again, event, modules
        self.raised = 0
        self.ran: set[str] = set()

    def run(self, work: Callable[[], Any]) -> None:
        """Do some work, which the interrupts end."""
        before = sys.gettrace()
        try:
            with self._second():
                sys.settrace(self._trace)
                work()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)

    @classmethod
    def lines_of(cls, work: Callable[[], Any]) -> int:
        """How many lines of `WRITERS` some work runs."""
        far = 10**12
        counter = cls(far)
        counter.run(work)
        return far - counter._left

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        writer = WRITERS.get(frame.f_code.co_filename)
        if writer is None or writer not in self._modules:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        if event == self._event:
            self.ran.add(writer)
            self._left -= 1
            if self._left < 0:
                self.raised += 1
                raise KeyboardInterrupt  # which ends the tracing as well
        return self._trace

    @contextmanager
    def _second(self) -> Iterator[None]:
        """Trace again once the first interrupt is being dealt with."""

        def armed(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if self.raised == 1 and self._again is not None and sys.gettrace() is None:
                    self._left = self._again
                    sys.settrace(self._trace)
                return original(*args, **kwargs)

            return call

        names = ("_settle", "change")
        with patch.multiple(WeightContents, **{name: armed(getattr(WeightContents, name)) for name in names}):
            yield
