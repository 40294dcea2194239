"""Wall time and peak memory of the stages of a cell."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from emendo.io.heap import give_back_freed_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Adds up seconds by stage, and keeps the highest memory that a stage reached.

    Memory is the process's resident memory, or what torch has allocated on a CUDA device. Resident memory is of the
    whole process: what earlier stages and cells freed can still be in it, where the allocator keeps it; `begin_bytes`
    says with how much a stage began. Where the system cannot reset its high-water mark (it can on Linux), both figures
    are the highest since the process began.

    Args:
        device: Where the model is.

    Attributes:
        seconds: Wall time by stage.
        peak_bytes: Highest memory by stage.
        begin_bytes: Memory at the begin of the stage; of one that was entered several times, when it reached its peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self.begin_bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; stages do not nest."""
        _reset_peak(self.device)
        held = _peak(self.device)  # just reset, the high-water mark is what is in use
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - begin}, {name: _peak(self.device)}, {name: held})

    def add(
        self, seconds: Mapping[str, float], peak_bytes: Mapping[str, int], begin_bytes: Mapping[str, int] | None = None
    ) -> None:
        """Add figures that were measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        for name, peak in peak_bytes.items():
            if peak > self.peak_bytes.get(name, 0):
                self.peak_bytes[name] = peak
                if begin_bytes is not None and name in begin_bytes:  # journals of older versions have none
                    self.begin_bytes[name] = begin_bytes[name]

    def divide(self, name: str, parts: Mapping[str, float]) -> None:
        """Replace the seconds of a stage by those of its parts; what they leave stays under its name."""
        self.seconds[name] -= sum(parts.values())
        self.add(parts, {})


def release_memory() -> None:
    """Hand memory that nothing uses any more back to the system, so that the next cell's peaks are its own."""
    gc.collect()
    give_back_freed_memory()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _CLEAR.write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
