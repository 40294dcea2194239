"""One thread that does everything with the model, one job after the other, whoever is looking.

A page may be closed while a job runs; the job goes on, and whoever opens the page again sees how it went. A cancelled
job ends where it next tells its progress, as an interrupt would: what it was doing leaves the model as it found it.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from emendo.errors import EmendoError, InputError, LedgerBusyError

State: TypeAlias = Literal["waiting", "running", "done", "failed", "cancelled"]
T = TypeVar("T")

MOST_WAITING = 20
"""Jobs that may wait; more are refused, since nobody can be waiting for them."""

_KEPT = 20
"""Jobs that are over and still known."""


class CancelledError(BaseException):
    """Somebody cancelled the job. Like `KeyboardInterrupt` no `Exception`, which code on the way might take for one."""


@dataclass
class Job:
    """Something that the page asked for; it is the `Progress` of what it does.

    Attributes:
        number: Counts all jobs.
        title: What it does, for people.
        state: Where it stands.
        stage: What it is doing.
        done: Units of the stage that are finished.
        total: Units of the stage; None where not known.
        message: What it waits for, or how it ended.
        began: Time at which it began, in seconds since the epoch; 0 while it waits.
        ended: Time at which it ended; 0 before.
        result: What it gave.
    """

    number: int
    title: str
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int | None = None
    message: str = ""
    began: float = 0.0
    ended: float = 0.0
    result: Any = None
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)

    # ---- Progress ----------------------------------------------------------------------------------------

    def start(self, stage: str, total: int | None = None) -> None:
        """Begin a stage; ends the job where it was cancelled."""
        self.check()
        self.stage, self.done, self.total, self.message = stage, 0, total, ""

    def advance(self, n: int = 1) -> None:
        """Count finished units; ends the job where it was cancelled."""
        self.done += n
        self.check()

    def finish(self) -> None:
        """End the stage."""
        self.stage, self.done, self.total = "", 0, None

    # ---- for what it does --------------------------------------------------------------------------------

    def check(self) -> None:
        """End the job here, if somebody cancelled it.

        Raises:
            CancelledError: Somebody did.
        """
        if self._cancelled.is_set():
            raise CancelledError

    def tell(self, message: str) -> None:
        """Say what it waits for."""
        self.message = message

    def patiently(self, operation: Callable[[], T], seconds: float) -> T:
        """Do something that another process may hold up, which is told; it can be cancelled while it waits.

        Args:
            operation: Raises `LedgerBusyError` before it has begun anything.
            seconds: How long to try.

        Raises:
            LedgerBusyError: The other process wrote all the time.
        """
        until = time.monotonic() + seconds
        while True:
            self.check()
            try:
                return operation()
            except LedgerBusyError:
                if time.monotonic() >= until:
                    raise

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._over.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        return self._over.wait(seconds)

    def to_dict(self) -> dict[str, Any]:
        """What a page shows of it."""
        names = ("number", "title", "state", "stage", "done", "total", "message", "began", "ended")
        return {name: getattr(self, name) for name in names}


class Worker:
    """The thread and its jobs, first come first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Job, Callable[[Job], Any]]] = deque()
        self._running: Job | None = None
        self._over: deque[Job] = deque(maxlen=_KEPT)
        self._count = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="emendo-ui-jobs", daemon=True)
        self._thread.start()

    def submit(self, title: str, work: Callable[[Job], Any]) -> Job:
        """Add a job.

        Args:
            title: What it does, for people.
            work: Does it; is given the job, to tell its progress.

        Raises:
            InputError: Too many wait already, or the page is closing.
        """
        with self._changed:
            if self._closed:
                raise InputError("the page is closing; start it again (emendo ui)")
            if len(self._waiting) >= MOST_WAITING:
                raise InputError(f"{MOST_WAITING} jobs wait already; expected some of them to end, or to be cancelled")
            self._count += 1
            job = Job(self._count, title)
            if (ahead := self._running) is not None:
                job.message = f"waits for: {ahead.title}"
            self._waiting.append((job, work))
            self._changed.notify_all()
        return job

    def cancel(self, number: int) -> bool:
        """Cancel a job, also one that waits; whether there was one."""
        with self._changed:
            for entry in list(self._waiting):
                if entry[0].number == number:
                    self._waiting.remove(entry)
                    self._end(entry[0], "cancelled", "cancelled before it began")
                    return True
            if self._running is not None and self._running.number == number:
                self._running._cancelled.set()
                self._running.message = "ends at its next step"
                return True
        return False

    def jobs(self) -> list[Job]:
        """The running job, those that wait, in order, and those that are over, the newest first."""
        with self._changed:
            running = [] if self._running is None else [self._running]
            return [*running, *(job for job, _ in self._waiting), *reversed(self._over)]

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        with self._changed:
            return self._running is None and not self._waiting

    def close(self, seconds: float = 60.0) -> bool:
        """Cancel everything and end the thread; whether it ended in time."""
        with self._changed:
            self._closed = True
            while self._waiting:
                self._end(self._waiting.popleft()[0], "cancelled", "the page was closed")
            if self._running is not None:
                self._running._cancelled.set()
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job, work = self._waiting.popleft()
                self._running = job
                job.state, job.message, job.began = "running", "", time.time()
            state, message = self._done(job, work)
            with self._changed:
                self._running = None
                self._end(job, state, message)

    def _done(self, job: Job, work: Callable[[Job], Any]) -> tuple[State, str]:
        """Do a job; whatever happens, the thread goes on."""
        try:
            job.result = work(job)
        except CancelledError:
            return "cancelled", "cancelled; the model and the ledger are as they were before it"
        except EmendoError as error:
            return "failed", "\n".join([str(error), *getattr(error, "__notes__", ())])
        except BaseException as error:  # a fault of ours must not end the thread that everybody waits for
            traceback.print_exc()
            return "failed", f"{type(error).__name__}: {error}. This is a fault of Emendo's; the terminal has the rest"
        return "done", job.message

    def _end(self, job: Job, state: State, message: str) -> None:
        job.state, job.message, job.ended = state, message, time.time()
        job.stage, job.done, job.total = "", 0, None
        self._over.append(job)
        job._over.set()
