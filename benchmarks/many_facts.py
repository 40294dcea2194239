"""Many facts: one plan of thousands, and a long stream of single edits, both without any search.

    python benchmarks/many_facts.py plan --data facts.jsonl -n 10000 --out benchmarks/results/many_facts.jsonl
    python benchmarks/many_facts.py stream -n 1000 --out benchmarks/results/many_facts.jsonl

`plan` writes -n facts in one batch by least squares on the demo model, split evenly over layers and by the cheapest
split. `stream` writes -n facts one after another with a history on a small model that has not been trained, each on top
of all before it. In place of a search every target is the present value and a random step of a third of its norm, which
costs nothing: what is measured is everything else. Memory is the process's largest resident size above what the loaded
model and its second moments take; align_seconds is the time that texts take to become tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import emendo
from benchmarks.machine import describe_machine
from emendo.editing import edit_run, keys
from emendo.editing.value_search import FoundValues, SearchTrace
from emendo.io.versions import versions
from emendo.methods.settings import KeySettings, TargetSettings
from emendo.models import EditableModel
from emendo.requests import SLOT, AnyContext, EditRequest
from emendo.statistics.store import MomentStore

PLANS = {"even": {}, "optimal": {"distribution": "optimal"}}


def random_values(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[AnyContext],
    layer: int,
    settings: TargetSettings,
    *_: object,
) -> FoundValues:
    """What a search would find, without one: a step of a third of the value's norm in a random direction."""
    now = keys.current_values(lm, requests, [SLOT], layer, settings.site, KeySettings(residual="plain"))
    delta = torch.randn(now.shape, generator=torch.Generator().manual_seed(0))
    delta *= now.norm(dim=1, keepdim=True) / 3 / delta.norm(dim=1, keepdim=True)
    trace = SearchTrace((0.0,), 0.0, 0.0, argmax=True, stopped="loss", delta_norm=1.0, init_norm=3.0)
    return FoundValues(layer, now + delta, delta, (trace,) * len(requests))


@contextmanager
def timed_alignment() -> Iterator[list[float]]:
    """Seconds of every alignment of prompts for keys and values."""
    seconds: list[float] = []
    align = keys._aligned

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return align(*args)
        finally:
            seconds.append(time.perf_counter() - begin)

    with mock.patch.object(keys, "_aligned", timed):
        yield seconds


def plan(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One batch of many facts on the demo model."""
    lm = emendo.load("demo")
    records = emendo.load_records(args.data).records
    requests = list({(one.request.prompt, one.request.subject): one.request for one in records}.values())[: args.n]
    for name, settings in PLANS.items():
        session = emendo.EditSession(lm)
        session.plan(requests[:2], "memit", settings=settings)  # second moments, factors and contexts are there
        before = _status("VmRSS")
        _forget_peak()
        begin, cpu = time.perf_counter(), time.process_time()
        with timed_alignment() as aligning:
            made = session.plan(requests, "memit", settings=settings)
        yield {
            "split": name,
            "n": len(requests),
            "rows": len(made.update.layers[0].residuals),
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - cpu,
            "align_seconds": sum(aligning),
            "stages": made.seconds,
            "mib_above_model": (_status("VmHWM") - before) / 2**20,
        }


def stream(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One edit after another on top of all before, with a history."""
    from tests.conftest import build_tiny
    from tests.quick_plans import QUICK

    lm = build_tiny("llama")
    requests = [EditRequest("{} is calm in", _name(number), "May") for number in range(args.n)]
    with tempfile.TemporaryDirectory() as folder:
        session = emendo.EditSession(lm, store=MomentStore(Path(folder)))
        seconds = []
        settings = {**QUICK, "history.weight": 1.0, "memorization.s": 1.0, "target.shared": "request"}
        for number, request in enumerate(requests):
            begin = time.process_time()
            session.apply(session.plan([request], args.method, layers=[1], settings=settings))
            seconds.append(time.process_time() - begin)
            if number % 100 == 99:
                print(f"{number + 1}: {sum(seconds[-100:]) / 100:.4f} s", file=sys.stderr, flush=True)
    medians = {at: _median(seconds[at - 50 : at + 50]) for at in range(100, args.n - 49, 100)}
    yield {"method": args.method, "n": args.n, "d_in": lm.d_in(1), "median_cpu_seconds_around": medians}


def _name(number: int) -> str:
    """Subjects that end in different tokens of the small model's bytes."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "Da" + "".join(letters[(number // 26**place) % 26] for place in range(4))


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Resident bytes: now (VmRSS), or the most since they were last forgotten (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "stream"])
    parser.add_argument("--data", help="facts, in any format that emendo reads (plan)")
    parser.add_argument("--method", default="emendo", help="of the stream")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with mock.patch.object(edit_run, "search_values", random_values):
        for row in (plan if args.what == "plan" else stream)(args):
            line = json.dumps({"what": args.what, **row, "machine": describe_machine(), "versions": versions()})
            print(line)
            if args.out:
                with args.out.open("a", encoding="utf-8") as out:
                    out.write(line + "\n")


if __name__ == "__main__":
    main()
