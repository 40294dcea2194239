"""Who may use the weights of one model at an instant: any number of readers, or one thread that writes them.

What Emendo runs, it runs on modules of its own (`models.isolation`), and while it does the weights are not written:
`reading`. A write takes milliseconds. It waits for those readers and for forward passes of the model that other
threads are in the middle of, and holds back those that come meanwhile: `writing`. So every forward pass sees all of a
write or nothing of it. Nothing is left on the model between writes, and a pass costs what it costs without Emendo.

A hold counts only as long as the frame that took it lives, whether a pass is under way is read off the threads' stacks,
and no lock is held at any instant (what must be atomic is one operation on a dictionary): an interrupt cannot leave
behind something that nobody releases.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn

from emendo.errors import ModelBusyError

_POLL = 0.0005
"""Seconds between two looks at what other threads do."""

_PATIENCE = 1.0
"""Seconds that a reader lets a waiting writer go first. Then it goes on: another reader may be waiting for it."""


class _Hold:
    """A claim of one thread, as long as somebody refers to it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.granted = False
        self.over = False


class _Holds:
    """The holds of one kind that threads have at the moment, in the order in which they were announced."""

    def __init__(self) -> None:
        self._held: dict[int, weakref.ref[_Hold]] = {}

    def announce(self, hold: _Hold) -> None:
        """Let others see it."""
        key = id(hold)
        self._held[key] = weakref.ref(hold, lambda _: self._forget(key))

    def withdraw(self, hold: _Hold) -> None:
        """Let others go on."""
        self._held.pop(id(hold), None)

    def _forget(self, key: int) -> None:
        self._held.pop(key, None)

    @property
    def alive(self) -> list[_Hold]:
        """All of them."""
        return [hold for known in list(self._held.values()) if (hold := known()) is not None]

    @property
    def own(self) -> bool:
        """Whether this thread was granted one."""
        return any(hold.granted and hold.thread == threading.get_ident() for hold in self.alive)

    @property
    def others(self) -> bool:
        """Whether another thread has one."""
        return any(hold.thread != threading.get_ident() for hold in self.alive)

    def is_first(self, hold: _Hold) -> bool:
        """Whether no other thread announced one before."""
        for earlier in self.alive:
            if earlier is hold or earlier.thread != hold.thread:
                return earlier is hold
        return True


class ModelAccess:
    """The readers and the writer of one model's weights.

    Args:
        decoder: The module that every forward pass goes through and that all written weights are in.
    """

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = weakref.ref(decoder)
        self._turns, self._readers, self._waiting, self._writers = (_Holds() for _ in range(4))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One change of what is in the model at a time; other threads wait for theirs.

        Raises:
            ModelBusyError: This thread is reading, and another one is already waiting for it to end in order to write.
        """
        hold = _Hold()
        hold.granted = self._turns.own
        self._turns.announce(hold)
        try:
            while not (hold.granted or self._turns.is_first(hold)):
                if self._readers.own:
                    raise ModelBusyError(
                        "another thread is changing this model and waits for a plan or an evaluation of this thread to "
                        "end, so this thread cannot change it from inside that; nothing was changed. Expected apply(), "
                        "rollback() and move_to() after it has ended"
                    )
                time.sleep(_POLL)
            hold.granted = True
            yield
        finally:
            self._turns.withdraw(hold)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The weights are not written by other threads while the context lasts."""
        hold, patience = _Hold(), time.monotonic() + _PATIENCE
        hold.granted = self._readers.own or self._writers.own
        try:
            while not hold.granted and self._waiting.others and time.monotonic() < patience:
                time.sleep(_POLL)
            self._readers.announce(hold)
            while not hold.granted and self._writers.others:
                self._readers.withdraw(hold)  # the writer looks for readers after it has announced itself
                time.sleep(_POLL)
                self._readers.announce(hold)
            hold.granted = True
            yield
        finally:
            self._readers.withdraw(hold)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """No other thread reads the weights while the context lasts; inside it, it may be entered again.

        To be entered in a turn of this thread: there is one writer at a time.
        """
        if self._writers.own:
            yield
            return
        hold = _Hold()
        try:
            try:
                self._waiting.announce(hold)
                self._writers.announce(hold)
                while self._readers.others:
                    self._writers.withdraw(hold)  # a reader may wait for another one, so it is not held back meanwhile
                    time.sleep(_POLL)
                    self._writers.announce(hold)
                hold.granted = True
                self._hold_passes_back(hold)
                yield
            finally:
                self._end(hold)
        except BaseException:  # an interrupt of the line above as well
            self._end(hold)
            raise

    def tidy(self) -> None:
        """Remove what interrupts have left on the model; it holds nobody back."""
        hooks: Any = getattr(self._decoder(), "_forward_pre_hooks", {})
        for key, hook in list(hooks.items()):
            if isinstance(hook, _Gate) and not hook.closed:
                hooks.pop(key, None)

    def _end(self, hold: _Hold) -> None:
        hold.over = True
        self._writers.withdraw(hold)
        self._waiting.withdraw(hold)
        self.tidy()

    def _hold_passes_back(self, hold: _Hold) -> None:
        """Let forward passes of other threads begin no more, and wait for those that are under way."""
        decoder = self._decoder()
        if decoder is None:
            return
        decoder.register_forward_pre_hook(_Gate(hold), prepend=True)
        me = threading.get_ident()
        while any(_runs(decoder, frame) for thread, frame in sys._current_frames().items() if thread != me):
            time.sleep(_POLL)


_ACCESS: weakref.WeakKeyDictionary[nn.Module, ModelAccess] = weakref.WeakKeyDictionary()


def access_to(decoder: nn.Module) -> ModelAccess:
    """The one access to a decoder's weights, whoever asks: two adapters of one model share it."""
    known = _ACCESS.get(decoder)
    return _ACCESS.setdefault(decoder, ModelAccess(decoder)) if known is None else known


class _Gate:
    """A forward pre-hook that holds others back while a hold lasts; without one, as in a copy, it does nothing."""

    def __init__(self, hold: _Hold | None = None) -> None:
        self._hold = None if hold is None else weakref.ref(hold)

    @property
    def closed(self) -> bool:
        """Whether it holds anybody back."""
        hold = None if self._hold is None else self._hold()
        return hold is not None and not hold.over

    def __call__(self, module: nn.Module, args: Any) -> None:
        hold = None if self._hold is None else self._hold()
        own = hold is not None and hold.thread == threading.get_ident()
        del hold  # else it would last as long as this waits for its end
        while self.closed and not own:
            time.sleep(_POLL)

    def __reduce__(self) -> tuple[type[_Gate], tuple[()]]:
        return _Gate, ()


def is_gate(hook: object) -> bool:
    """Whether a forward pre-hook is one of those that hold passes back during a write; they change no activation."""
    return isinstance(hook, _Gate)


_GATE_CODE, _CALL_CODE = _Gate.__call__.__code__, nn.Module._call_impl.__code__


def _runs(decoder: nn.Module, frame: FrameType | None) -> bool:
    """Whether a thread is inside a forward pass of the decoder, and not held back at its beginning."""
    while frame is not None:
        if frame.f_code is _GATE_CODE:
            # The gate of a write that is over lets its thread go on, which then never meets the next write's gate.
            return not frame.f_locals["self"].closed
        if frame.f_code is _CALL_CODE and frame.f_locals.get("self") is decoder:
            return True
        frame = frame.f_back
    return False
