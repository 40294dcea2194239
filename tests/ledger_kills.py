"""Kill processes that write a ledger, at random instants, and look at what is left: `python tests/ledger_kills.py`.

A worker edits, replaces, reverts and compacts at random until SIGKILL. It tells its parent what it is about to do,
and that it is done. After each kill the ledger has to open and verify, to hold every operation that was reported done,
and to stand exactly at the state before or after the one that was under way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

for entry in (Path(__file__).parents[1], Path(__file__).parents[1] / "src"):
    if str(entry) not in sys.path:
        sys.path.insert(0, str(entry))

from emendo.ledger import EditLedger  # noqa: E402
from emendo.ledger.record import MAKES_EDIT  # noqa: E402
from tests.ledger_world import WorldPlanner, add, fact, facts_of, new_ledger, replacing  # noqa: E402

MOST_ACTIVE = 8
MOST_LINES = 8
"""Half as many operations are done at most before a worker is killed; counted, so that a slow machine does as many."""
LONGEST = 0.03  # seconds from then to the kill: an operation or two on an idle machine


def work(folder: Path, seed: int, pipe: int) -> None:
    """Operate on the ledger until killed."""
    rng = random.Random(seed)
    ledger = EditLedger(folder)
    number = 0
    while True:
        active = [edit.id for edit in ledger.history().edits()]
        kind = rng.choices(("edit", "replace", "revert", "compact"), (6, 3, 4, 2))[0]
        if len(active) >= MOST_ACTIVE:
            kind = "revert"
        before = facts_of(ledger)
        if kind == "edit" or len(active) < 2:
            number += 1
            request = fact(seed * 1000 + number)
            tell(pipe, "begin", "edit", [*before, request.subject])
            add(ledger, request)
        elif kind == "replace":
            number += 1
            old = rng.choice([request for edit in ledger.history().edits() for request in edit.requests.values()])
            left = [subject for subject in before if subject != old.subject]
            tell(pipe, "begin", "replace", [*left, old.subject])
            replacing(ledger, replace(old, target=f"City {seed * 1000 + number}"))
        elif kind == "revert":
            gone = rng.choice(active)
            history = ledger.history()
            left = [r.subject for e in history.edits() if e.id != gone for r in e.requests.values()]
            tell(pipe, "begin", "revert", left)
            ledger.revert(gone, WorldPlanner())
        else:
            tell(pipe, "begin", "compact", before)
            ledger.compact()
        tell(pipe, "done", ledger.store.head()[0], None)


def tell(pipe: int, *words: Any) -> None:
    os.write(pipe, (json.dumps(words) + "\n").encode())


def killed(folder: Path, seed: int, lines: int, delay: float) -> list[list[Any]]:
    """Start a worker, kill it some seconds after it told so many lines; gives all that it told."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            work(folder, seed, writer)
        finally:
            os._exit(1)  # an error in the worker: its parent sees that it was not killed
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = [stream.readline() for _ in range(lines)]
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        told += stream.read().splitlines()
    if not os.WIFSIGNALED(status):
        raise AssertionError(f"the worker failed by itself (seed {seed}): {told[-1:]}")
    return [json.loads(line) for line in told]


def check(folder: Path, known: list[str], told: list[list[Any]]) -> tuple[str, int]:
    """Hold a ledger against what its killed writer told; gives what it was doing, and the leftovers of that.

    Args:
        folder: The ledger.
        known: Ids of the records before; brought up to date.
        told: Lines of `tell`.
    """
    ledger = EditLedger(folder)
    found = ledger.verify()
    assert found.ok, found.problems
    chain = ledger.log()
    ids = [record.id for record in chain]
    known += [id for word, id, _ in told if word == "done"]
    assert ids[: len(known)] == known, "an operation that was reported done is not there"
    assert len(ids) <= len(known) + 1, "more happened than was begun"
    under_way = told[-1] if told and told[-1][0] == "begin" else None
    after = [line[2] for line in told if line[0] == "begin"]
    if len(ids) > len(known):
        assert under_way is not None
        operation = chain[-1].operation
        assert operation == under_way[1], "it is the operation that was under way"
        known.append(ids[-1])
    elif under_way is not None:
        after = after[:-1]
    if after:
        assert facts_of(ledger) == after[-1], "neither the state before nor the one after"
    ledger.updates()  # each can be read and has the identity that its record gives
    return (under_way[1] if under_way else "between"), found.leftovers


def exact(ledger: EditLedger) -> bool:
    """Whether the present updates are those of planning the surviving edits from the beginning (without compaction)."""
    planner = WorldPlanner()
    again = [planner.plan(edit).id for edit in ledger.history().edits()]
    return again == [entry.update for entry in ledger.state()]


def run(kills: int, seed: int, folder: Path, per_ledger: int = 20) -> dict[str, Any]:
    """Kill so many workers, each ledger taking several kills in a row."""
    rng = random.Random(seed)
    during: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    leftovers = unreported = reported = 0
    for kill in range(kills):
        if kill % per_ledger == 0:
            at = folder / f"ledger-{kill}"
            known = [record.id for record in new_ledger(at).log()]
        told = killed(at, seed * 10_000 + kill + 1, rng.randrange(MOST_LINES), rng.uniform(0.0, LONGEST))
        done = sum(word == "done" for word, *_ in told)
        before = len(known) + done
        doing, left = check(at, known, told)
        during[doing] += 1
        leftovers += left
        reported += done
        unreported += len(known) - before
        if kill % per_ledger == per_ledger - 1 or kill == kills - 1:
            ledger = EditLedger(at)
            add(ledger, fact(0, "nowhere"))  # a killed ledger takes the next edit, and sweeps
            assert ledger.verify().leftovers == 0
            operations.update(record.operation for record in ledger.log())
            if not any(record.operation == "compact" for record in ledger.log()):
                assert exact(ledger)
    return {
        "kills": kills,
        "killed_during": dict(during),
        "in_but_not_yet_reported": unreported,
        "leftover_files": leftovers,
        "operations": {name: n for name, n in operations.items() if name in (*MAKES_EDIT, "revert", "compact")},
        "reported_and_found": reported,  # one that is lost or half applied ends the run with an AssertionError
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ledger-kills-") as folder:
        found = run(arguments.kills, arguments.seed, Path(folder))
    print(json.dumps({**found, "seconds": round(time.perf_counter() - begin, 1)}))


if __name__ == "__main__":
    main()
