"""Wall time and peak memory of the stages of a cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Adds up seconds by stage, and keeps the highest memory that a stage reached.

    Memory is the process's resident memory, or what torch has allocated on a CUDA device. Where the system cannot reset
    its high-water mark (it can on Linux), a stage's figure is the highest since the process began.

    Args:
        device: Where the model is.

    Attributes:
        seconds: Wall time by stage.
        peak_bytes: Highest memory by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside; stages do not nest."""
        _reset_peak(self.device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - begin}, {name: _peak(self.device)})

    def add(self, seconds: Mapping[str, float], peak_bytes: Mapping[str, int]) -> None:
        """Add figures that were measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        for name, peak in peak_bytes.items():
            self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), peak)

    def divide(self, name: str, parts: Mapping[str, float]) -> None:
        """Replace the seconds of a stage by those of its parts; what they leave stays under its name."""
        self.seconds[name] -= sum(parts.values())
        self.add(parts, {})


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
