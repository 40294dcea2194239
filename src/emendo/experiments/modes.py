"""How many edits go into the model at once, how long they stay there, and when they are scored.

===================  ===============================================  ==========================
mode                 what is in the model while a batch is scored     schedules
===================  ===============================================  ==========================
single               one edit; the base is restored after it          immediate
batch                one solve of ``batch_size`` edits, then restored immediate
sequential           all edits so far, written one by one             immediate, final, both
sequential-batched   all edits so far, ``batch_size`` at a time       immediate, final, both
===================  ===============================================  ==========================

*Immediate* scores a batch right after its own edit, *final* scores all records after the last edit. The two are never
mixed in one number: immediate scores hide what later edits undo.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from emendo.arguments import Between, Count, checked
from emendo.errors import ExperimentError

Mode = Literal["single", "batch", "sequential", "sequential-batched"]
Schedule = Literal["immediate", "final", "both"]

MODES: tuple[Mode, ...] = get_args(Mode)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def restores(mode: Mode) -> bool:
    """Whether the base is restored after each batch."""
    return mode in ("single", "batch")


@checked
def default_batch_size(mode: Mode, n: int) -> int:
    """One where the mode says so, else all records."""
    return 1 if mode in ("single", "sequential") else n


@checked
def default_schedule(mode: Mode) -> Schedule:
    """What is scored unless somebody says otherwise: all that the mode has."""
    return "immediate" if restores(mode) else "both"


@checked
def check_mode(mode: Mode, batch_size: int, n: int, schedule: Schedule) -> None:
    """Refuse combinations that mean nothing.

    Args:
        mode: How edits are put in.
        batch_size: Edits per step.
        n: Records.
        schedule: When they are scored.

    Raises:
        ExperimentError: Says what does not go together, and what does.
    """
    if n < 1 or batch_size < 1:
        raise ExperimentError(f"n={n}, batch_size={batch_size}: expected at least 1 of each (--n, --batch-size)")
    if mode in ("single", "sequential") and batch_size != 1:
        other = "batch" if mode == "single" else "sequential-batched"
        raise ExperimentError(
            f"mode {mode!r} writes one edit at a time, found batch_size={batch_size}; use --mode {other} "
            f"--batch-size {batch_size}, or leave the batch size out"
        )
    if batch_size > n:
        raise ExperimentError(
            f"batch_size={batch_size} is more than the n={n} records; take more records (--n {batch_size}) or a "
            f"smaller batch (--batch-size {n})"
        )
    if restores(mode) and schedule != "immediate":
        raise ExperimentError(
            f"mode {mode!r} restores the model after every batch, so there is no last state to score and schedule "
            f"{schedule!r} means nothing; use --schedule immediate, or --mode sequential-batched"
        )


@checked
def batch_ranges(n: Annotated[int, Between(0, 10**7)], batch_size: Count) -> list[range]:
    """Positions of the records of every batch; the last batch may be smaller."""
    return [range(begin, min(begin + batch_size, n)) for begin in range(0, n, batch_size)]
