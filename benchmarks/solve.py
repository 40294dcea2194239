"""Time the solver: factorising a layer once, then dual keys for batches of 1 to 1000 requests.

    python benchmarks/solve.py --quick                    # d_in = 1536, under a minute
    python benchmarks/solve.py --d-in 1536 6400 14336 --out solve.json

Widths: 1536 is SmolLM2-135M, 6400 GPT2-XL, 14336 Llama-3-8B. Data are random: no result depends on
their values but the condition numbers. Every time is set against a floor, the fewest operations that the
formula takes, at the float64 GEMM rate measured in the same run:

    prepare   d³/3                        Cholesky factor of A
    dual      2nd² + 3n²d + n³/3          two triangular solves, half a Gram matrix, T Z, one factor
    primal    3nd² + d³/3                 half of KᵀK, a factor of order d, two triangular solves

with d = d_in. What the solver does beyond that (independence check, condition estimates, constraint error)
is part of the time and not of the floor.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from emendo.solve import PreparedLayer, Preservation, prepare, solve

WIDTHS = (1536, 6400, 14336)
BATCHES = (1, 10, 100, 1000)
ENOUGH_SECONDS = 2.0  # a case is repeated until it has taken this long


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    device = torch.device(arguments.device)
    prepare(random_moment(256, device), Preservation())  # loads the libraries; not timed
    rate = gemm_rate(1024 if arguments.quick else 2048, device)
    report: dict[str, Any] = {
        "benchmark": "solve",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "gemm_float64_gflops": round(rate, 1),
        # Widest last: peak memory of a process never falls, so each is the peak of its own width.
        "layers": [bench_layer(d_in, arguments.n, rate, device) for d_in in sorted(arguments.d_in)],
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, nargs="+", help=f"key widths (default: {WIDTHS})")
    parser.add_argument("--n", type=int, nargs="+", default=BATCHES, help="batch sizes (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="d_in = 1536 only, unless --d-in says otherwise")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args(argv)
    arguments.d_in = arguments.d_in or (WIDTHS[:1] if arguments.quick else WIDTHS)
    return arguments


def bench_layer(d_in: int, batches: list[int], rate: float, device: torch.device) -> dict[str, Any]:
    """One width: prepare, then every batch size with equality and by least squares."""
    say(f"d_in {d_in}: moment")
    moment = random_moment(d_in, device)
    say(f"d_in {d_in}: prepare")
    layer, seconds = timed(lambda: prepare(moment, Preservation()), device)
    result: dict[str, Any] = {
        "d_in": d_in,
        "moment_dtype": str(moment.dtype),
        "prepare": {
            "seconds": round(seconds, 4),
            "metric_condition": float(f"{layer.condition:.3g}"),
            **against_floor(d_in**3 / 3, seconds, rate),
        },
        "solves": [bench_solve(layer, n, s, rate, device) for n in batches for s in (0.0, 1.0) if s > 0.0 or n <= d_in],
    }
    result["peak_rss_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if device.type == "cuda":
        result["peak_cuda_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return result


def bench_solve(layer: PreparedLayer, n: int, s: float, rate: float, device: torch.device) -> dict[str, Any]:
    """One batch size and strength: the median time of a few runs after a first one that is not counted."""
    d_in = layer.d_in
    say(f"d_in {d_in}: n {n} s {s:g}")
    keys = torch.randn(n, d_in, generator=torch.Generator().manual_seed(n)).to(device)
    solution, first = timed(lambda: solve(layer, keys, s=s), device)
    times: list[float] = []
    while not times or (sum(times) + first < ENOUGH_SECONDS and len(times) < 50):
        times.append(timed(lambda: solve(layer, keys, s=s), device)[1])
    stats = solution.stats
    median = statistics.median(times)
    flops = 3 * n * d_in**2 + d_in**3 / 3
    if stats.form == "dual":
        flops = 2 * n * d_in**2 + 3 * n**2 * d_in + n**3 / 3
    return {
        "n": n,
        "s": s,
        "form": stats.form,
        "ms": round(median * 1e3, 3),
        "ms_best": round(min(times) * 1e3, 3),
        "runs": len(times),
        **against_floor(flops, median, rate),
        "constraint_error": float(f"{stats.constraint_error:.2g}"),
        "system_condition": float(f"{stats.system_condition:.3g}"),
    }


def against_floor(flops: float, seconds: float, rate: float) -> dict[str, float]:
    return {
        "floor_gflop": float(f"{flops / 1e9:.4g}"),
        "floor_ms": float(f"{flops / rate / 1e6:.4g}"),
        "gflops": round(flops / seconds / 1e9, 1),
        "of_gemm_rate": round(flops / seconds / 1e9 / rate, 3),
    }


def random_moment(d_in: int, device: torch.device) -> torch.Tensor:
    """A second moment with a wide spectrum, at O(64 d_in²): a diagonal and 64 directions."""
    generator = torch.Generator().manual_seed(d_in)
    directions = torch.randn(d_in, 64, generator=generator, dtype=torch.float64)
    directions *= torch.logspace(1, -1, 64)
    moment = directions @ directions.T
    moment.diagonal().add_(torch.logspace(0, -4, d_in))
    return moment.to(device)


def gemm_rate(size: int, device: torch.device) -> float:
    """Float64 matrix product, best of five, in GFLOP/s."""
    left = torch.randn(size, size, dtype=torch.float64, device=device)
    right = torch.randn(size, size, dtype=torch.float64, device=device)
    best = min(timed(lambda: left @ right, device)[1] for _ in range(6))
    return 2 * size**3 / best / 1e9


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return value, time.perf_counter() - start


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
