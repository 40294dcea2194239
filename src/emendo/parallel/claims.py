"""Claims in a shared folder: who does what, without anybody who coordinates.

A claim is the file ``.claims/NAME.GENERATION``, made with O_EXCL: one of several processes makes it, on every file
system. Its owner renews it. One that was not renewed for a while, or whose process is dead, is taken over by making the
next generation, again with O_EXCL, so that of several who see it stale one gets it; the old owner sees that when it
looks (`Claim.check`). Whether a claim is renewed is seen by its content, on the watcher's own clock: clocks of machines
are never compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from emendo.errors import ClaimLostError, OutputError

RENEW = 15.0
"""Seconds between two renewals."""

STALE = 120.0
"""Seconds without a renewal after which a claim can be taken over; network file systems cache for up to 60."""

_FOLDER = ".claims"


class Claims:
    """The claims of one folder.

    Args:
        folder: What the claims are about; they lie in a folder of it.
        renew: Seconds between two renewals.
        stale: Seconds after which a claim that is not renewed can be taken over.
    """

    def __init__(self, folder: Path, *, renew: float = RENEW, stale: float = STALE) -> None:
        self.folder = folder / _FOLDER
        self.renew, self.stale = renew, stale
        self._seen: dict[Path, tuple[bytes, float]] = {}
        self.held: set[Claim] = set()
        self.lock = threading.RLock()
        self._renewing: threading.Thread | None = None

    def take(self, name: str) -> Claim | None:
        """The claim of a name, or None where somebody else has it.

        What is claimed has to be looked at again afterwards: it may have been done meanwhile.

        Raises:
            OutputError: The folder cannot be written.
        """
        before = self.generations(name)
        if before and not self._is_stale(self.path(name, before[-1])):
            return None
        number = before[-1] + 1 if before else 0
        path = self.path(name, number)
        claim = Claim(self, name, number, path)
        if not self._make(path, claim.content()):
            return None
        # Between the look and the making, an owner may have finished and another one begun at generation 0: whoever
        # sees a claim that it did not know of gives way. One of two who do so at once sees the other's.
        if set(self.generations(name)) - set(before) != {number}:
            path.unlink(missing_ok=True)
            return None
        with self.lock:
            self.held.add(claim)
            self._renew_in_background()
        return claim

    @contextmanager
    def hold(self, name: str, waiting: Callable[[], None] | None = None) -> Iterator[Claim]:
        """The claim of a name, waited for; given back at the end.

        Args:
            name: What is claimed.
            waiting: Called once a second meanwhile.
        """
        while (claim := self.take(name)) is None:
            if waiting is not None:
                waiting()
            time.sleep(min(1.0, self.stale / 4))
        with claim:
            yield claim

    def owners(self, prefix: str = "") -> list[dict[str, Any]]:
        """What the owners of claims say of themselves; without this process's own, and without stale ones.

        Args:
            prefix: Of the names that are looked at.
        """
        own = {claim.path for claim in self.held}
        found = []
        for path in sorted(self._files()):
            if path.name.startswith(prefix) and path not in own and not self._is_stale(path):
                with suppress(OSError, ValueError):
                    found.append(json.loads(path.read_bytes()))
        return found

    def sweep(self, finished: Callable[[str], bool]) -> None:
        """Take away what killed processes have left of claims, and the folder if it is empty.

        Args:
            finished: Whether what a name stands for is done.
        """
        for path in self._files():
            if finished(path.name.rpartition(".")[0]) or self._is_stale(path):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _make(self, path: Path, content: bytes) -> bool:
        """Make a file that must not be there; whether this process was the one that made it."""
        for _ in range(3):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as stream:
                    stream.write(content)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError as error:  # somebody has just taken the empty folder away (`sweep`)
                failure: OSError = error
            except OSError as error:
                failure = error
                break
        raise OutputError(f"cannot write {str(path)!r}: {failure}; choose a writable folder (--out)") from failure

    def path(self, name: str, generation: int) -> Path:
        """The file of one claim."""
        return self.folder / f"{name}.{generation}"

    def _files(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def generations(self, name: str) -> list[int]:
        """Numbers of the claims of a name, ascending."""
        parts = (path.name.rpartition(".") for path in self._files())
        return sorted(int(number) for found, _, number in parts if found == name and number.isdecimal())

    def _is_stale(self, path: Path) -> bool:
        """Whether a claim's process is dead, or this object has watched it unrenewed for long enough."""
        try:
            content = path.read_bytes()
        except OSError:  # gone, or not to be read now: look again later
            return False
        if _is_dead(content):
            return True
        now = time.monotonic()
        known = self._seen.get(path)
        if known is None or known[0] != content:
            self._seen[path] = (content, now)
            return False
        return now - known[1] > self.stale

    def _renew_in_background(self) -> None:
        if self._renewing is None or not self._renewing.is_alive():
            self._renewing = threading.Thread(target=self._renew, name="claims", daemon=True)
            self._renewing.start()

    def _renew(self) -> None:
        while True:
            time.sleep(self.renew)
            with self.lock:
                if not self.held:
                    self._renewing = None
                    return
                held = list(self.held)
            for claim in held:
                claim.renewed()


class Claim:
    """One claim of this process; a context that gives it back.

    Args:
        claims: Where it was taken.
        name: What is claimed.
        generation: How often it was taken over.
        path: Its file.
    """

    def __init__(self, claims: Claims, name: str, generation: int, path: Path) -> None:
        self.name, self.generation, self.path = name, generation, path
        self._claims = claims
        self._beat = 0
        self._token = secrets.token_hex(8)
        self._says: dict[str, str] | None = None

    def content(self) -> bytes:
        """What its file says: who has it, and how often it was renewed."""
        return json.dumps({**here(), "token": self._token, "beat": self._beat, "says": self._says}).encode()

    def say(self, words: dict[str, str]) -> None:
        """Tell others something in its file, which `Claims.owners` gives them as ``says``."""
        self._says = words
        self.renewed()

    def renewed(self) -> None:
        """Show that its owner is alive; one that was taken away stays so."""
        with self._claims.lock:
            if self._is_mine():
                self._beat += 1
                with suppress(OSError), self.path.open("r+b") as stream:
                    stream.write(self.content())
                    stream.truncate()

    def check(self) -> None:
        """See that nobody has taken it over.

        Raises:
            ClaimLostError: Somebody has: this process stood still for too long.
        """
        with self._claims.lock:
            mine = self._is_mine() and self._claims.generations(self.name)[-1:] == [self.generation]
        if not mine:
            raise ClaimLostError(
                f"{self.name!r} was taken over by another worker, because this one had not renewed its claim for "
                f"{self._claims.stale:.0f} s; nothing more is written here"
            )

    def release(self) -> None:
        """Give it back; generations before it go first, so that nobody sees only those."""
        with self._claims.lock:
            self._claims.held.discard(self)
            if self._is_mine():
                for number in self._claims.generations(self.name):
                    if number < self.generation:
                        self._claims.path(self.name, number).unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        """Whether its file is the one that it made: a name can be taken, done, given back, and taken again."""
        try:
            return bool(json.loads(self.path.read_bytes())["token"] == self._token)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def here() -> dict[str, Any]:
    """This process: its machine and process namespace, its number, and when it began, since numbers come again."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}


def _is_dead(content: bytes) -> bool:
    """Whether a claim's process was on this machine and is not there any more; False where that cannot be said."""
    try:
        owner = json.loads(content)
        machine, pid, began = owner["machine"], int(owner["pid"]), owner["began"]
    except (ValueError, KeyError, TypeError):  # half written: its owner is at it, or was killed just then
        return False
    if machine is None or machine != _machine():
        return False
    found = _began(pid)
    if found is not None or began is None:
        return found is not None and began is not None and found != began
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, which this system hides
        return False
    return True  # ours, and only waiting to be reaped


def _machine() -> str | None:
    """The running system and its process namespace, in which process numbers mean something; None where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """When a process began, in ticks of the system's clock; None where there is none, or it cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else fields[19]
