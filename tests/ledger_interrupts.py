"""Interrupt operations on a ledger at every line that they run, once and twice: `python tests/ledger_interrupts.py`.

The first KeyboardInterrupt is raised before a line of `emendo.ledger` or `emendo.io`; the second, where there is
one, at a later call of a function, which is in what cleans up after the first. After each the ledger has to be at the
state before or after, whole and open to the next writer, and what is in it is said.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

for entry in (Path(__file__).parents[1], Path(__file__).parents[1] / "src"):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))

import emendo.io  # noqa: E402
import emendo.ledger  # noqa: E402
from emendo.errors import LedgerError  # noqa: E402
from emendo.ledger import EditLedger  # noqa: E402
from tests.ledger_steps import SEEN_AFTER, edits_of, template  # noqa: E402
from tests.ledger_world import WorldPlanner, WorldSession, add, fact, facts_of, new_ledger, replacing  # noqa: E402

PLACES = tuple(str(Path(module.__file__ or "").parent) for module in (emendo.ledger, emendo.io))

OPERATIONS: dict[str, Callable[[Path], object]] = {
    "init": new_ledger,
    "edit": lambda folder: EditLedger(folder).edit(WorldSession(), [fact(9)]),  # type: ignore[arg-type]
    "replace": lambda folder: replacing(EditLedger(folder), fact(2, "Oslo")),
    "revert": lambda folder: EditLedger(folder).revert(edits_of(folder)[1], WorldPlanner()),
    "checkout": lambda folder: EditLedger(folder).checkout("base"),
    "compact": lambda folder: EditLedger(folder).compact(),
}


def interrupted(operation: Callable[[], object], line: int, again: int = 0) -> tuple[bool, BaseException | None]:
    """Run an operation, interrupted before that line and, where `again`, at that call after it.

    Returns:
        Whether it has so many lines, and what it ended with.
    """
    left, calls = [line], [again]

    def second(frame: FrameType, event: str, _: Any) -> None:
        if left[0] <= 0 and event in ("call", "c_call") and frame.f_code.co_filename.startswith(PLACES):
            calls[0] -= 1
            if calls[0] == 0:
                raise KeyboardInterrupt

    def first(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PLACES):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return first

    try:
        sys.setprofile(second if again else None)
        sys.settrace(first)
        operation()
        return left[0] <= 0, None
    except BaseException as error:
        return left[0] <= 0, error
    finally:
        sys.settrace(None)
        sys.setprofile(None)


def check(folder: Path, name: str, records: int, notes: list[str], told: bool) -> bool:
    """Hold an interrupted ledger against before and after; gives whether it is after.

    Args:
        folder: The ledger.
        name: Of the operation.
        records: In the ledger before.
        notes: Of the interrupt, one of which has to name the record if it is in.
        told: The interrupt came where that can no longer be.
    """
    if name == "init":
        try:
            ledger = EditLedger(folder, timeout=0)
        except LedgerError:
            ledger = new_ledger(folder, timeout=0)  # what is left is no obstacle
            assert ledger.verify().ok
            return False
    ledger = EditLedger(folder, timeout=0)
    found = ledger.verify()
    assert found.ok, found.problems
    done = len(ledger.log()) - records
    assert done in (0, 1)
    assert facts_of(ledger) == (SEEN_AFTER[name] if done else ["Tower 1", "Tower 2", "Tower 3"])
    if done and name != "init":
        assert told or any(ledger.log()[-1].id[:12] in note for note in notes)
    add(ledger, fact(100))  # nobody holds the lock
    assert ledger.verify().leftovers == 0, "the next operation sweeps"
    return done == 1


def in_the_note(error: BaseException) -> bool:
    """Whether the interrupt came when the ledger had been let go, or while it was looked at for the note."""
    at, names = error.__traceback__, []
    while at is not None:
        names.append(at.tb_frame.f_code.co_name)
        at = at.tb_next
    return "locked" not in names and "append" not in names


def run(names: list[str], folder: Path, stride: int = 1, twice: int = 0, seed: int = 0) -> dict[str, dict[str, int]]:
    """Interrupt every operation before each `stride`-th line, and `twice` times at any and at a call after it."""
    rng = random.Random(seed)
    original, counts = folder / "template", {}
    records = template(original)
    gc.freeze()  # what was imported is not looked through after each interrupt

    def once(name: str, line: int, again: int) -> bool | None:
        at = folder / "ledger"
        shutil.rmtree(at, ignore_errors=True)
        if name != "init":
            shutil.copytree(original, at)
        reached, error = interrupted(lambda: OPERATIONS[name](at), line, again)
        if not reached:
            return None
        if error is not None and not isinstance(error, KeyboardInterrupt):
            raise error
        told = error is None or error.__context__ is not None or in_the_note(error)
        notes = list(getattr(error, "__notes__", []))
        del error  # whose traceback can hold what an interrupt in the exit of a `with` left open
        gc.collect()
        return check(at, name, 0 if name == "init" else records, notes, told)

    for name in names:
        happened: list[bool] = []
        line = 1 + rng.randrange(stride)
        while (after := once(name, line, 0)) is not None:
            happened.append(after)
            line += stride
        for _ in range(twice):
            once(name, 1 + rng.randrange(line), 1 + rng.randrange(8))
        counts[name] = {"interrupts": len(happened), "after": sum(happened), "twice": twice}
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--twice", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", default=list(OPERATIONS))
    arguments = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ledger-interrupts-", dir=memory) as folder:
        print(json.dumps(run(arguments.names, Path(folder), arguments.stride, arguments.twice, arguments.seed)))


if __name__ == "__main__":
    main()
