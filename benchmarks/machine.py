"""What a benchmark says about the machine it ran on, and the machine's own speed in the same run."""

from __future__ import annotations

import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from emendo.io.versions import versions


def gemm_gflops(
    dtype: torch.dtype = torch.float32, size: int = 2048, repeats: int = 7, device: torch.device | str = "cpu"
) -> float:
    """Median rate of one square matrix product, in 1e9 floating-point operations a second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if a.is_cuda else int
    torch.mm(a, b)
    times = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        torch.mm(a, b)
        wait()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times) / 1e9


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_machine() -> dict[str, Any]:
    """Processor, threads, memory and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{names[0]} ({len(names)} logical cores)" if names else model
    return {
        "processor": model,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
