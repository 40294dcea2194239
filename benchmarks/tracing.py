"""Causal tracing: exact grids by the wave against a naive loop over cells, and against the arithmetic floor.

The naive loop computes each cell as the public script does: one forward pass over the clean and all corrupted rows with
hooks, the answer read at the last position (the script computes logits everywhere, so this is kind to it). All of its
cells cost the same, so a random sample is run and scaled. Both run fact by fact in turn in one process; on a busy
machine the ratio of processor time is the one to read. The floor is the arithmetic of the linear maps on the
token-layers that the wave runs, at the float32 GEMM rate of the same run.

    python benchmarks/tracing.py --out benchmarks/results/tracing.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine, gemm_gflops, peak_memory_mib
from emendo import EditableModel, load
from emendo.tracing import TraceFact, TraceSettings, embedding_deviation, packaged_subjects
from emendo.tracing import grid as wave
from emendo.tracing.check import cell_by_forward
from emendo.tracing.corrupt import corrupt
from emendo.tracing.facts import align_fact
from emendo.tracing.runs import answered_token, run_both


def facts_of(lm: EditableModel, count: int) -> list[TraceFact]:
    """The first packaged facts whose prompts have 8 to 11 tokens."""
    text = (resources.files("emendo") / "data" / "demo_facts.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    facts = [TraceFact(row["prompt"], row["subject"]) for row in rows]
    return [fact for fact in facts if 8 <= len(align_fact(lm, fact).ids) <= 11][:count]


def measure(
    lm: EditableModel, fact: TraceFact, settings: TraceSettings, deviation: float, cells: int
) -> dict[str, Any]:
    rate = gemm_gflops()
    aligned = align_fact(lm, fact)
    corrupted = corrupt(lm, aligned, settings, deviation)
    counted: list[int] = []
    step = wave.wave_step

    def counting(own: EditableModel, layer: int, stream: torch.Tensor, layout: Any) -> torch.Tensor:
        counted.append(stream.shape[0] * stream.shape[1] * stream.shape[2])
        return step(own, layer, stream, layout)

    begin, begin_cpu = time.perf_counter(), time.process_time()
    answer = answered_token(lm, aligned)
    runs = run_both(lm, corrupted, answer, settings.metric, settings.kinds)
    with mock.patch.object(wave, "wave_step", counting):
        grids = {kind: wave.trace_grid(lm, aligned, runs, kind, settings) for kind in settings.kinds}
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    random, worst, naive_seconds, naive_cpu, asked, every = np.random.default_rng(0), 0.0, 0.0, 0.0, 0, 0
    for kind, grid in grids.items():
        wanted = (grid.state != wave.ABSENT).nonzero().tolist()
        exact = (grid.state == wave.EXACT).nonzero().tolist()
        every += len(wanted)
        for place in random.choice(len(exact), min(cells, len(exact)), replace=False):
            t, layer = exact[place]
            begin, begin_cpu = time.perf_counter(), time.process_time()
            expected = cell_by_forward(lm, corrupted, runs, kind, t, layer, settings)
            naive_seconds += time.perf_counter() - begin
            naive_cpu += time.process_time() - begin_cpu
            asked += 1
            worst = max(worst, float((expected - grid.scores[:, t, layer]).abs().max()))
    body = sum(p.numel() for block in lm.blocks for p in block.parameters() if p.ndim == 2) / lm.n_layers
    floor = 2 * body * sum(counted) / 1e9
    rate = (rate + gemm_gflops()) / 2
    return {
        "fact": fact.text,
        "tokens": len(aligned.ids),
        "positions": settings.positions,
        "cells": every,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "naive_cells_run": asked,
        "naive_seconds": naive_seconds / asked * every,
        "naive_cpu_seconds": naive_cpu / asked * every,
        "cpu_ratio": naive_cpu / asked * every / cpu,
        "largest_difference": worst,
        "token_layers": sum(counted),
        "floor_gflop": floor,
        "gemm_gflops": rate,
        "of_floor": floor / rate / seconds,
    }


def profile(lm: EditableModel, fact: TraceFact, settings: TraceSettings, deviation: float) -> list[dict[str, Any]]:
    """Where the time of the wave goes: the largest operators by their own time, in percent."""
    aligned = align_fact(lm, fact)
    corrupted = corrupt(lm, aligned, settings, deviation)
    runs = run_both(lm, corrupted, answered_token(lm, aligned), settings.metric, settings.kinds)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        for kind in settings.kinds:
            wave.trace_grid(lm, aligned, runs, kind, settings)
    rows = sorted(record.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [
        {"operator": row.key, "calls": row.count, "percent": 100 * row.self_cpu_time_total / total} for row in rows[:10]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--facts", type=int, default=3)
    parser.add_argument("--cells", type=int, default=16, help="cells of each kind that the naive loop runs")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    lm = load(args.model)
    resident = peak_memory_mib()
    deviation = embedding_deviation(lm, packaged_subjects())
    rows = []
    for fact in facts_of(lm, args.facts):
        for positions in ("ends", "all"):
            settings = TraceSettings(samples=args.samples, positions=positions)
            rows.append(measure(lm, fact, settings, deviation, args.cells))
            print(json.dumps(rows[-1]), flush=True)
    whole = [row for row in rows if row["positions"] == "all"]
    document = {
        "rows": rows,
        "whole_grid_cpu_ratio": sum(r["naive_cpu_seconds"] for r in whole) / sum(r["cpu_seconds"] for r in whole),
        "largest_difference": max(row["largest_difference"] for row in rows),
        "memory_above_the_model_mib": peak_memory_mib() - resident,
        "machine": describe_machine(),
    }
    if args.profile:
        settings = TraceSettings(samples=args.samples, positions="ends")
        document["profile"] = profile(lm, facts_of(lm, 1)[0], settings, deviation)
    print(json.dumps({name: document[name] for name in ("whole_grid_cpu_ratio", "memory_above_the_model_mib")}))
    if args.out:
        args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
