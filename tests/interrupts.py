"""Ctrl-C at a chosen line or bytecode of the code that writes a model, once or twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import emendo
from emendo.models.contents import WeightContents

_ROOT = Path(emendo.__file__).parent
_WRITERS = {
    str(_ROOT / name) for name in ("editing/session.py", "models/contents.py", "models/access.py", "models/adapter.py")
}
"""Where a model is written, and who may write it is settled."""


class Interrupter:
    """Raises KeyboardInterrupt at one event of the code that writes a model, counted from 0.

    Args:
        at: The event.
        again: A second one is raised so many events into whatever then puts things in order; None: there is none.
        event: ``"line"`` or ``"opcode"``.
    """

    def __init__(self, at: int, again: int | None = None, event: str = "line") -> None:
        self._left, self._again, self._event = at, again, event
        self.raised = 0

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

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in _WRITERS:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        if event == self._event:
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
