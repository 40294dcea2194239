"""What every operation on a ledger takes as it grows: `python -m benchmarks.ledger`.

One process makes edits of one fact each with tiny updates, until there are 5,000 records: once all of them active, once
folded every hundred records. At some sizes each operation is timed as a new process would do it, with nothing in
memory, but for the imports. Times are those of the processor, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from emendo.ledger import EditLedger
from emendo.requests import EditRequest
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate

BASE = {"name": "tiny", "model_type": "llama", "weights_sha256": "a" * 64, "tokenizer_sha256": "b" * 64}
METHOD = {"name": "emmet", "source": "", "settings": {"layers": [1]}, "origins": {}}
D_OUT, D_IN = 16, 32


def update(number: int, preceding: Predecessors) -> ModelUpdate:
    """An edit of one fact, of rank 1."""
    generator = torch.Generator().manual_seed(number)
    rows = [torch.randn(1, size, generator=generator) for size in (D_OUT, D_IN, D_IN)]
    request = EditRequest("{} is located in the city of", f"Tower {number}", "Rome")
    info = {"requests": [request.to_dict()], "method": METHOD, "seed": 0}
    return ModelUpdate((LayerUpdate(1, "layers.1.down", *rows),), BASE, preceding, info)


def grow(ledger: EditLedger, first: int, last: int, fold_every: int) -> list[float]:
    """Add records up to a number; gives the seconds of the edits among them."""
    seconds = []
    held = Predecessors.of(entry.update for entry in ledger.state())
    for number in range(first, last):
        if fold_every and number % fold_every == 0:
            ledger.compact()
            held = Predecessors.of(entry.update for entry in ledger.state())
            continue
        planned = update(number, held)
        held = held.then(planned.id)
        begin = time.process_time()
        ledger.commit_edit(planned)
        seconds.append(time.process_time() - begin)
    return seconds


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """By name; each opens the ledger anew."""

    def newest_edit() -> str:
        return EditLedger(folder).history().edits()[-1].id

    return {
        "log": lambda: EditLedger(folder).log(),
        "show": lambda: EditLedger(folder).record(EditLedger(folder).store.head()[0]),
        "active edits": lambda: EditLedger(folder).history().edits(),
        "verify": lambda: EditLedger(folder).verify(),
        "revert the newest": lambda: EditLedger(folder).revert(newest_edit()),
        "checkout base": lambda: EditLedger(folder).checkout("base"),
        "checkout a record": lambda: EditLedger(folder).checkout(EditLedger(folder).log()[-3].id),
        "compact": lambda: EditLedger(folder).compact(),
    }


def timed(folder: Path) -> dict[str, float]:
    """Milliseconds of every operation on a copy of a ledger."""
    found = {}
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        at = Path(shutil.copytree(folder, Path(copy) / "ledger"))
        for name, operation in operations(at).items():
            gc.collect()
            gc.freeze()  # what this process holds beside, a new one would not look through
            begin = time.process_time()
            operation()
            found[name] = round(1000 * (time.process_time() - begin), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fold-every", type=int, nargs="+", default=[0, 100], help="records; 0: never")
    parser.add_argument("--sizes", type=int, nargs="+", default=[313, 625, 1250, 2500, 5000])
    parser.add_argument(
        "--folder", type=Path, help="where the ledger is made; a file system in memory has no disk in it"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ledger.json")
    arguments = parser.parse_args()
    rows = []
    for fold_every in arguments.fold_every:
        with tempfile.TemporaryDirectory(prefix="ledger-", dir=arguments.folder) as place:
            rows += measured(Path(place) / "ledger", sorted(arguments.sizes), fold_every)
    document = {"milliseconds": rows, "machine": describe_machine()}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measured(folder: Path, sizes: list[int], fold_every: int) -> list[dict[str, float]]:
    """One row for each size of a ledger that grows."""
    ledger = EditLedger.create(folder, {**BASE, "dtype": "float32"}, who="benchmark")
    rows: list[dict[str, float]] = []
    at = 1
    for size in sizes:
        seconds = sorted(grow(ledger, at, size, fold_every)[-100:])
        at = size
        edit = round(1000 * seconds[len(seconds) // 2], 1)
        held = {"fold_every": fold_every, "records": len(ledger.log()), "active": len(ledger.state())}
        rows.append({**held, "edit": edit, **timed(folder)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
