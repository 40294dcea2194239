"""Target search: seconds and cost a fact, against the floor and against a plain serial loop.

*Cost* is seconds a fact times the float32 GEMM rate measured in the same run: what the search took, in GFLOP that the
machine could have done meanwhile, so that runs on unlike or busy machines compare. The floor is the arithmetic of the
layers above the edit on the suffix positions, forward and backward, for the evaluations that were made.

    python benchmarks/targets.py --data counterfact.jsonl --out targets.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine, gemm_gflops, peak_memory_mib
from emendo import EditableModel, EditRequest, load
from emendo.datasets import load_records, parse_records
from emendo.editing.contexts import prefix_contexts
from emendo.editing.objective import InjectionSite, value_problem
from emendo.editing.value_search import FoundValues, search_values
from emendo.methods.settings import TargetSettings

RULES = {
    "published": TargetSettings(),
    "published, bfloat16 products": TargetSettings(precision="bfloat16"),
    "argmax": TargetSettings(argmax_steps=2),
    "argmax, bfloat16 products": TargetSettings(argmax_steps=2, precision="bfloat16"),
}


def read_requests(path: Path | None, n: int) -> list[EditRequest]:
    """The first n facts of a CounterFact file, or of the packaged demo facts."""
    if path is None:
        text = (resources.files("emendo") / "data" / "demo_facts.jsonl").read_text(encoding="utf-8")
        return [record.request for record in parse_records(text, "demo_facts.jsonl")[:n]]
    return [record.request for record in load_records(path, format="counterfact").records[:n]]


def floor_gflop(
    lm: EditableModel, requests: list[EditRequest], contexts: tuple[str, ...], layer: int, found: FoundValues
) -> dict[str, float]:
    """Arithmetic a fact that the search cannot avoid, in GFLOP: linear maps only, two operations a weight."""
    entry = InjectionSite.at(lm, layer, "resid_post")
    problem, _ = value_problem(lm, [[request] for request in requests], contexts, entry)
    above = sum(p.numel() for block in lm.blocks[layer + 1 :] for p in block.parameters() if p.ndim == 2)
    whole = sum(p.numel() for block in lm.blocks for p in block.parameters() if p.ndim == 2)
    head = lm.vocab_size * lm.d_model
    evaluations = torch.tensor([len(trace.losses) for trace in found.traces], dtype=torch.float64)
    owner = problem.owner[problem.layout.rows].bincount().double()
    scored = problem.score_owner.bincount().double() + 1
    step = 2 * (above * owner + head * scored)
    # The last evaluation has no backward pass; weights are frozen, so a backward pass costs what a forward does.
    search = float((step * (2 * evaluations - 1)).mean()) / 1e9
    before = problem.layout.positions[problem.subjects].double().sum() / len(requests)
    prompts = 2 * whole * float(before) / 1e9
    prompts += 2 * whole * float(owner.mean()) / 1e9
    return {"search_gflop": search, "prompts_gflop": prompts, "tokens_per_fact": float(owner.mean())}


def measure(
    lm: EditableModel,
    requests: list[EditRequest],
    contexts: tuple[str, ...],
    layer: int,
    settings: TargetSettings,
    repeats: int,
    rate: Callable[[], float] = gemm_gflops,
) -> dict[str, Any]:
    times, rates = [], []
    for _ in range(repeats):
        before = rate()
        begin = time.perf_counter()
        found = search_values(lm, requests, contexts, layer, settings)
        times.append((time.perf_counter() - begin) / len(requests))
        rates.append((before + rate()) / 2)
    costs = sorted(t * r for t, r in zip(times, rates, strict=True))
    floor = floor_gflop(lm, requests, contexts, layer, found)
    cost = statistics.median(costs)
    return {
        "seconds_per_fact": statistics.median(times),
        "facts_per_second": 1 / statistics.median(times),
        "gemm_gflops": statistics.median(rates),
        "cost_gflop": cost,
        "cost_range": [costs[0], costs[-1]],
        **floor,
        "of_floor": (floor["search_gflop"] + floor["prompts_gflop"]) / cost,
        "evaluations": sum(len(t.losses) for t in found.traces) / len(requests),
        "nll": sum(t.nll for t in found.traces) / len(requests),
        "argmax_share": sum(t.argmax for t in found.traces) / len(requests),
    }


def profile(
    lm: EditableModel, requests: list[EditRequest], contexts: tuple[str, ...], layer: int
) -> list[dict[str, Any]]:
    """Where the time goes: the largest operators by their own time, in percent."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        search_values(lm, requests, contexts, layer, TargetSettings(steps=6))
    rows = sorted(record.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [
        {"operator": row.key, "calls": row.count, "percent": 100 * row.self_cpu_time_total / total} for row in rows[:14]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, help="CounterFact JSONL; default: the packaged demo facts")
    parser.add_argument("-n", type=int, default=24)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lm = load(args.model)
    requests = read_requests(args.data, args.n)
    contexts = prefix_contexts(lm, "memit", 0)
    search_values(lm, requests[:4], contexts, args.layer, TargetSettings(steps=2))  # warm-up
    document: dict[str, Any] = {
        "benchmark": "targets",
        "machine": describe_machine(),
        "setting": {"model": args.model, "n": args.n, "layer": args.layer, "contexts": len(contexts)},
        "rules": {},
    }
    for rule in args.rules:
        row = measure(lm, requests, contexts, args.layer, RULES[rule], args.repeats)
        document["rules"][rule] = row
        print(
            f"{rule:30s} {row['seconds_per_fact']:.2f} s/fact, cost {row['cost_gflop']:.0f} GFLOP "
            f"({row['of_floor']:.0%} of it floor), {row['evaluations']:.1f} evaluations, NLL {row['nll']:.4f}",
            file=sys.stderr,
        )
    if args.profile:
        document["profile"] = profile(lm, requests, contexts, args.layer)
    document["peak_memory_mib"] = peak_memory_mib()
    text = json.dumps(document, indent=2)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
