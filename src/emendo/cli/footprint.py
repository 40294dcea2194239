"""What a plan takes on this machine, in tables: for `emendo doctor MODEL` and `emendo edit --plan-only`."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from emendo.cli.console import Terminal

if TYPE_CHECKING:
    from emendo.methods import MethodConfig
    from emendo.models.decoder import DecoderView

GIB = 2**30

_ROOM = 0.9
"""Part of the machine's memory that a plan may take: the rest is for everything else that runs."""


def memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def show_footprint(terminal: Terminal, lm: DecoderView, config: MethodConfig, edits: int) -> dict[str, Any]:
    """Memory by what it is for, whether it fits, and an estimate of the time.

    Args:
        terminal: Where it is shown.
        lm: The model, or its outline.
        config: A method with the layers that it writes.
        edits: Facts that are planned together.

    Returns:
        The same as JSON values.
    """
    from emendo.editing.footprint import footprint

    need, rate = footprint(lm, config, edits), _gemm_rate()
    rows = [(what, f"{count / GIB:.2f}") for what, count in need.memory.items()]
    terminal.table(
        f"{edits} fact(s) by {config.name}, layers {', '.join(map(str, config.written_layers))}",
        ("memory", "GiB"),
        [*rows, ("together, without the activations of the search", f"{need.total / GIB:.2f}")],
    )
    fits = need.total < _ROOM * memory()
    terminal.line(
        f"{'Fits' if fits else 'Does not fit'} into this machine's {memory() / GIB:.1f} GiB"
        + ("." if fits else ": fewer layers (--layers), --dtype bfloat16, or a larger machine."),
        style="green" if fits else "red",
    )
    seconds = {"second moments, once": need.moments_flop / rate, "search, at most": need.search_flop / rate}
    terminal.table(
        f"Time on this processor at {rate / 1e9:.0f} GFLOP/s (a large float32 product, measured now); an estimate",
        ("stage", "seconds"),
        [(name, f"{value:.0f}" if value >= 10 else f"{value:.1f}") for name, value in seconds.items()],
    )
    return {
        "memory_bytes": dict(need.memory),
        "total_bytes": need.total,
        "fits": fits,
        "flop_per_second": rate,
        "seconds": seconds,
    }


def tell_if_too_large(
    terminal: Terminal,
    model: str,
    dtype: str,
    method: str,
    layers: list[int] | None,
    settings: dict[str, str],
    edits: int,
) -> None:
    """Say so before anything is loaded, where a plan takes more memory than this machine has.

    Args:
        terminal: Where it is said.
        model: As --model takes it; what cannot be read is left to who loads it.
        dtype: Of the weights, as --dtype takes it.
        method: A method or baseline; of a baseline the model's weights alone are looked at.
        layers: Edited layers; None: the method's.
        settings: Of the method.
        edits: Facts that are planned together.
    """
    from emendo.editing.footprint import footprint, weight_bytes
    from emendo.errors import EmendoError
    from emendo.methods import resolve_method
    from emendo.models.loading import dtype_named
    from emendo.models.outline import outline
    from emendo.models.sources import find_source

    try:
        if find_source(model).kind in ("demo", "world"):  # small, whatever is planned
            return
        lm = outline(model, dtype_named(dtype))
        resolved = resolve_method(method, lm, layers=layers, settings=settings).on_engine()
    except EmendoError:
        return
    need = weight_bytes(lm) if resolved is None else footprint(lm, resolved.config, edits).total
    if need > _ROOM * memory():
        terminal.line(
            f"This takes about {need / GIB:.1f} GiB, without the activations of the search, and the machine has "
            f"{memory() / GIB:.1f}: it will likely be killed. Take fewer layers (--layers), --dtype bfloat16, few bits "
            "(--load-in) or a larger machine; `emendo doctor MODEL` says what takes how much.",
            style="red",
        )


@cache
def _gemm_rate(size: int = 1024, repeats: int = 5) -> float:
    """Floating-point operations a second of a large float32 product, at best; measured once."""
    import torch

    a = torch.randn(size, size)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)
