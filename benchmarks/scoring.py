"""Scoring records: (prompt, target) pairs a second, against a naive loop and against the arithmetic floor.

The naive loop is what the public repositories do with a batch of one: each pair alone through the whole model, logits
at every position. Both take the same blocks of records in turn, so that other work on the machine meets both; on a busy
machine the ratio of processor time is the one to read. The
floor is the arithmetic of linear maps on distinct tokens (every beginning of a text counted once over the block) and of
the unembedding at distinct scored positions, at the float32 GEMM rate of the same run.

    python benchmarks/scoring.py --data counterfact.jsonl --out benchmarks/results/scoring.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))


from benchmarks.machine import describe_machine, gemm_gflops, peak_memory_mib
from emendo import EditableModel, EditRecord, load
from emendo.datasets import load_records
from emendo.evaluate import score_tokens
from emendo.models.alignment import encode_target
from emendo.models.tree import build_prefix_tree

Pair = tuple[str, str]

TOTALS = ("pairs", "seconds", "naive_seconds", "cpu_seconds", "naive_cpu_seconds")


def pairs_of(records: list[EditRecord]) -> list[Pair]:
    """Every prompt of every record with its new and its true target."""
    return [
        (prompt, target)
        for record in records
        for prompt in (record.request.text, *record.paraphrase_prompts, *record.neighborhood_prompts)
        for target in (record.request.target, record.target_true or "")
    ]


def naive_nll(lm: EditableModel, pair: Pair) -> float:
    """One pair alone: the whole model, logits at every position, log-softmax where the target is predicted."""
    prompt, target = encode_target(lm, *pair)
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*prompt, *target]], device=lm.device)).logits[0]
    log_probs = logits[len(prompt) - 1 : -1].float().log_softmax(dim=-1)
    return -float(log_probs[torch.arange(len(target)), torch.tensor(target)].mean())


def work(lm: EditableModel, pairs: list[Pair]) -> dict[str, float]:
    """Distinct tokens and positions of the pairs, what the naive loop runs instead, and both in GFLOP."""
    encoded = [encode_target(lm, *pair) for pair in dict.fromkeys(pairs)]
    forest = build_prefix_tree([[*prompt, *target[:-1]] for prompt, target in encoded])
    scored = {node for path, (prompt, _) in zip(forest.paths, encoded, strict=True) for node in path[len(prompt) - 1 :]}
    body = sum(p.numel() for block in lm.blocks for p in block.parameters() if p.ndim == 2)
    head = lm.vocab_size * lm.d_model
    fed = [len(prompt) + len(target) for prompt, target in (encode_target(lm, *pair) for pair in pairs)]
    return {
        "pairs": len(pairs),
        "distinct_tokens": len(forest.tokens),
        "scored_positions": len(scored),
        "floor_gflop": 2 * (body * len(forest.tokens) + head * len(scored)) / 1e9,
        "naive_tokens": sum(fed),
        "naive_gflop": 2 * (body + head) * sum(fed) / 1e9,
    }


def measure_block(lm: EditableModel, pairs: list[Pair], token_budget: int | None) -> dict[str, Any]:
    rate = gemm_gflops()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    fast = score_tokens(lm, pairs, token_budget=token_budget)
    between, between_cpu = time.perf_counter(), time.process_time()
    naive = [naive_nll(lm, pair) for pair in pairs]
    end, end_cpu = time.perf_counter(), time.process_time()
    rate = (rate + gemm_gflops()) / 2
    row: dict[str, Any] = work(lm, pairs)
    return {
        **row,
        "seconds": between - begin,
        "naive_seconds": end - between,
        "ratio": (end - between) / (between - begin),
        "cpu_seconds": between_cpu - begin_cpu,
        "naive_cpu_seconds": end_cpu - between_cpu,
        "cpu_ratio": (end_cpu - between_cpu) / (between_cpu - begin_cpu),
        "gemm_gflops": rate,
        "of_floor": row["floor_gflop"] / rate / (between - begin),
        "largest_difference": max(abs(score.nll - other) for score, other in zip(fast, naive, strict=True)),
    }


def profile(lm: EditableModel, pairs: list[Pair]) -> list[dict[str, Any]]:
    """Where the time goes: the largest operators by their own time, in percent."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        score_tokens(lm, pairs)
    rows = sorted(record.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [
        {"operator": row.key, "calls": row.count, "percent": 100 * row.self_cpu_time_total / total} for row in rows[:12]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", type=Path, required=True, help="CounterFact JSONL with the original fields")
    parser.add_argument("-n", type=int, default=60, help="records")
    parser.add_argument("--block", type=int, default=10, help="records scored in one call")
    parser.add_argument("--budget", type=int, help="distinct tokens run at once; default: the library's")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    lm = load(args.model, dtype="float32")
    records = list(load_records(args.data, format="counterfact").records[: args.n])
    measure_block(lm, pairs_of(records[:1]), args.budget)  # warm-up
    blocks = []
    for start in range(0, len(records), args.block):
        row = measure_block(lm, pairs_of(records[start : start + args.block]), args.budget)
        blocks.append(row)
        print(
            f"records {start:4d}: {row['pairs'] / row['seconds']:6.1f} pairs/s, {row['ratio']:.1f} times the naive, "
            f"{row['of_floor']:.0%} of it floor, differs by {row['largest_difference']:.1e}",
            file=sys.stderr,
        )
    total = {name: sum(row[name] for row in blocks) for name in TOTALS}
    ratios = sorted(row["ratio"] for row in blocks)
    document = {
        "benchmark": "scoring",
        "machine": describe_machine(),
        "setting": {"model": args.model, "n": len(records), "block": args.block, "token_budget": args.budget},
        "pairs_per_second": total["pairs"] / total["seconds"],
        "naive_pairs_per_second": total["pairs"] / total["naive_seconds"],
        "ratio": total["naive_seconds"] / total["seconds"],
        "cpu_ratio": total["naive_cpu_seconds"] / total["cpu_seconds"],
        "load_average": [load_before, os.getloadavg()[0]],
        "ratio_of_blocks": {"median": statistics.median(ratios), "range": [ratios[0], ratios[-1]]},
        "of_floor": statistics.median(row["of_floor"] for row in blocks),
        "blocks": blocks,
        **({"profile": profile(lm, pairs_of(records[: args.block]))} if args.profile else {}),
        "peak_memory_mib": peak_memory_mib(),
    }
    print(
        f"ratio {document['ratio']:.2f} (processor time {document['cpu_ratio']:.2f}), "
        f"blocks {ratios[0]:.2f} to {ratios[-1]:.2f}",
        file=sys.stderr,
    )
    text = json.dumps(document, indent=2)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
