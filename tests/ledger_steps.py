"""Kill a process before every single step that an operation on a ledger takes on the disk, one after the other.

A step is a call that changes a file, a folder or what of them is on the disk. Writes are also cut in half. Run as a
command it prints how many steps each operation has: `python tests/ledger_steps.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

for entry in (Path(__file__).parents[1], Path(__file__).parents[1] / "src"):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))

from emendo.errors import LedgerError  # noqa: E402
from emendo.ledger import EditLedger  # noqa: E402
from tests.ledger_world import WorldPlanner, add, fact, facts_of, new_ledger, replacing  # noqa: E402

STEPS = ("open", "mkdir", "write", "pwrite", "ftruncate", "fsync", "chmod", "rename", "replace", "unlink")
"""Functions of `os` by which the ledger and the tensor files change the disk."""

OPERATIONS: dict[str, Callable[[Path], object]] = {
    "init": new_ledger,
    "edit": lambda folder: add(EditLedger(folder), fact(9)),
    "replace": lambda folder: replacing(EditLedger(folder), fact(2, "Oslo")),
    "revert": lambda folder: EditLedger(folder).revert(edits_of(folder)[1], WorldPlanner()),
    "revert the last": lambda folder: EditLedger(folder).revert(edits_of(folder)[-1]),
    "checkout": lambda folder: EditLedger(folder).checkout("base"),
    "compact": lambda folder: EditLedger(folder).compact(),
}

SEEN_AFTER = {
    "init": [],
    "edit": ["Tower 1", "Tower 2", "Tower 3", "Tower 9"],
    "replace": ["Tower 1", "Tower 3", "Tower 2"],
    "revert": ["Tower 1", "Tower 3"],
    "revert the last": ["Tower 1", "Tower 2"],
    "checkout": [],
    "compact": ["Tower 1", "Tower 2", "Tower 3"],
}
"""The facts after each operation on the ledger of `template`."""


def edits_of(folder: Path) -> list[str]:
    return [edit.id for edit in EditLedger(folder).history().edits()]


def template(folder: Path) -> int:
    """A ledger with three edits; gives the number of its records."""
    ledger = new_ledger(folder)
    for number in (1, 2, 3):
        add(ledger, fact(number))
    return len(ledger.log())


def die_at(step: int, half: bool) -> None:
    """From now on, kill this process before that step; or, of the writes alone, in the middle of that one."""
    left = [step]

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if half:
                    handle, data, *rest = arguments
                    call(handle, bytes(data)[: len(data) // 2], *rest)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return stepped

    for name in ("write", "pwrite") if half else STEPS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def killed_at(step: int, half: bool, operation: Callable[[], object]) -> bool:
    """Whether the operation has such a step, and was killed there."""
    child = os.fork()
    if child == 0:
        try:
            die_at(step, half)
            operation()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, f"the operation failed by itself before step {step}"
    return False


def check(folder: Path, name: str, records: int) -> bool:
    """Hold a ledger whose writer was killed against before and after; gives whether it is after."""
    if name == "init":
        try:
            ledger = EditLedger(folder)
        except LedgerError:
            ledger = new_ledger(folder)  # what is left is no obstacle
            assert ledger.verify().ok
            return False
    ledger = EditLedger(folder)
    found = ledger.verify()
    assert found.ok, found.problems
    ledger.updates()
    done = len(ledger.log()) - records
    assert done in (0, 1)
    assert facts_of(ledger) == (SEEN_AFTER[name] if done else ["Tower 1", "Tower 2", "Tower 3"])
    add(ledger, fact(100))
    assert ledger.verify().leftovers == 0, "the next operation sweeps"
    return done == 1


def run(names: list[str], folder: Path) -> dict[str, dict[str, int]]:
    """Kill every operation at its every step; gives the steps, and after how many the operation had happened."""
    original, counts = folder / "template", {}
    records = template(original)
    for name in names:
        for half in (False, True):
            step, happened = 0, []
            while True:
                step += 1
                at = folder / "ledger"
                shutil.rmtree(at, ignore_errors=True)
                if name != "init":
                    shutil.copytree(original, at)
                if not killed_at(step, half, lambda at=at, name=name: OPERATIONS[name](at)):
                    break
                happened.append(check(at, name, 0 if name == "init" else records))
            assert happened == sorted(happened), "before, before, ..., after, after: one instant between them"
            counts[f"{name}{', writes cut in half' if half else ''}"] = {"kills": len(happened), "after": sum(happened)}
    return counts


def main() -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a kill leaves the same there, and it is quick
    with tempfile.TemporaryDirectory(prefix="ledger-steps-", dir=memory) as folder:
        print(json.dumps(run(sys.argv[1:] or list(OPERATIONS), Path(folder))))


if __name__ == "__main__":
    main()
