"""One edit in real time: every stage of a prepared edit, and the floor of what is not the search.

    python benchmarks/single_edit.py --data counterfact.jsonl --out benchmarks/results/single_edit.json

``session.prepare()`` is timed once. Then each of -n facts is planned, written and taken back by itself. ``search`` is
the search of the target value; ``beside`` is all the rest of plan and apply. The floor beside the search is what cannot
be left out: two passes of the edit's prompts up to the first edited layer, the passes above it that the writes make
necessary, and two triangular solves with the factor of each edited layer; each measured by itself in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import emendo
from benchmarks.machine import describe_machine, gemm_gflops
from emendo.editing.keys import EditActivations
from emendo.editing.session import PreparedMethod
from emendo.requests import EditRequest


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    values = torch.tensor(seconds, dtype=torch.float64)
    return {"p50": float(values.quantile(0.5)), "p95": float(values.quantile(0.95)), "max": float(values.max())}


def timed(work: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def floor(ready: PreparedMethod, request: EditRequest) -> float:
    """Passes and triangular solves of one edit, and nothing else."""
    session, config = ready.session, ready.method.config
    layers = list(config.written_layers)
    metrics = session.preservation(config)
    with session.lm.isolated(layers) as lm:
        activations = EditActivations(lm, [request], ready.contexts, config.target.site, config.keys)

        def work() -> None:
            activations.keys(layers, resume=layers[0])
            for layer in layers:
                keys = activations.keys([layer], resume=layer)[layer].mean
                activations.values(layers[-1], resume=layer)
                metrics[layer].unwhiten(metrics[layer].whiten(keys))

        return timed(work)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="facts, in any format that emendo reads")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="emendo")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lm = emendo.load(args.model)
    requests = [record.request for record in emendo.load_records(args.data).records[: args.n]]
    session = emendo.EditSession(lm)
    preparing, ready = timed(lambda: session.prepare(args.method))
    ready.edit(requests[0])  # what is only slow once
    session.rollback()
    stages: dict[str, list[float]] = {name: [] for name in ("total", "search", "beside", "plan", "apply", "rollback")}
    inside: dict[str, list[float]] = {}
    for request in requests:
        plan_seconds, plan = timed(lambda request=request: ready.plan([request]))
        apply_seconds, _ = timed(lambda plan=plan: ready.apply(plan))
        search = plan.seconds["targets"]
        row = {
            "total": plan_seconds + apply_seconds,
            "search": search,
            "beside": plan_seconds + apply_seconds - search,
            "plan": plan_seconds,
            "apply": apply_seconds,
            "rollback": timed(session.rollback)[0],
        }
        for name, seconds in row.items():
            stages[name].append(seconds)
        for name, seconds in plan.seconds.items():
            inside.setdefault(name, []).append(seconds)
    result = {
        "model": args.model,
        "method": args.method,
        "facts": len(requests),
        "prepare_seconds": preparing,
        "seconds": {name: percentiles(values) for name, values in stages.items()},
        "inside_plan": {name: percentiles(values) for name, values in inside.items()},
        "floor_beside": percentiles([floor(ready, request) for request in requests]),
        "gemm_float32_gflops": gemm_gflops(),
        "machine": describe_machine(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
