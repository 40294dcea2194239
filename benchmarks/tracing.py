"""Causal tracing: exact grids by the wave against a naive loop over cells, and against the arithmetic floor.

The naive loop computes each cell as ROME's public script does: one call of the model on the clean and all corrupted
rows with hooks, which gives logits at all positions. It is the independent loop of the tests. A second one asks for
logits at the last position alone. All cells of a loop cost the same, so a random sample is run and scaled. Both run
fact by fact in turn in one process; times are of the processor, since on a busy machine others say little. The floor is
the arithmetic of the linear maps and the unembedding on what the wave runs, at the float32 GEMM rate of the same run.

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

from benchmarks.machine import describe_machine, peak_memory_mib
from emendo import EditableModel, load
from emendo.tracing import TraceFact, TraceSettings, embedding_deviation, packaged_subjects
from emendo.tracing import grid as wave
from emendo.tracing.check import cell_by_forward
from emendo.tracing.corrupt import corrupt
from emendo.tracing.facts import align_fact
from emendo.tracing.runs import answered_token, run_both
from tests.tracing_cases import naive_scores


def facts_of(lm: EditableModel, count: int) -> list[TraceFact]:
    """The first packaged facts whose prompts have 8 to 11 tokens."""
    text = (resources.files("emendo") / "data" / "demo_facts.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    facts = [TraceFact(row["prompt"], row["subject"]) for row in rows]
    return [fact for fact in facts if 8 <= len(align_fact(lm, fact).ids) <= 11][:count]


def gemm_rate(size: int = 1024) -> float:
    """Rate of one matrix product by processor time, in 1e9 operations a second."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    begin = time.process_time()
    for _ in range(8):
        torch.mm(a, b)
    return 8 * 2 * size**3 / 1e9 / (time.process_time() - begin)


def linear_parameters(lm: EditableModel) -> tuple[list[int], list[int]]:
    """Weights of each block's linear maps: all, and those of its MLP alone."""
    whole = [sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in lm.blocks]
    mlps = [lm.dense_mlp(layer) for layer in range(lm.n_layers)]
    return whole, [0 if mlp is None else sum(p.numel() for p in mlp.parameters() if p.ndim == 2) for mlp in mlps]


def measure(
    lm: EditableModel, fact: TraceFact, settings: TraceSettings, deviation: float, cells: int
) -> dict[str, Any]:
    rate = gemm_rate()
    aligned = align_fact(lm, fact)
    corrupted = corrupt(lm, aligned, settings, deviation)
    whole, mlps = linear_parameters(lm)
    counted: list[int] = []  # multiplications of the linear maps
    step, given = wave.wave_step, wave.mlp_given

    def counting(own: EditableModel, layer: int, stream: torch.Tensor, layout: Any) -> torch.Tensor:
        counted.append(stream[..., 0].numel() * whole[layer])
        return step(own, layer, stream, layout)

    def sparing(own: EditableModel, layer: int, tokens: torch.Tensor, value: torch.Tensor) -> Any:
        counted.append(-int(tokens.sum()) * mlps[layer])
        return given(own, layer, tokens, value)

    begin, begin_cpu = time.perf_counter(), time.process_time()
    answer = answered_token(lm, aligned)
    runs = run_both(lm, corrupted, answer, settings.metric, settings.kinds)
    with mock.patch.object(wave, "wave_step", counting), mock.patch.object(wave, "mlp_given", sparing):
        grids = {kind: wave.trace_grid(lm, aligned, runs, kind, settings) for kind in settings.kinds}
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu

    random, worst, asked, every, exact_cells = np.random.default_rng(0), 0.0, 0, 0, 0
    naive = {"script": 0.0, "last_position": 0.0}
    for kind, grid in grids.items():
        exact = (grid.state == wave.EXACT).nonzero().tolist()
        every += int((grid.state != wave.ABSENT).sum())
        exact_cells += len(exact)
        for place in random.choice(len(exact), min(cells, len(exact)), replace=False):
            t, layer = exact[place]
            assert corrupted.noise is not None
            begin_cpu = time.process_time()
            expected = naive_scores(
                lm,
                list(aligned.ids),
                (aligned.begin, aligned.end),
                corrupted.noise,
                kind,
                (t, layer),
                answer,
                settings.window,
            )
            naive["script"] += time.process_time() - begin_cpu
            begin_cpu = time.process_time()
            cell_by_forward(lm, corrupted, runs, kind, t, layer, settings)
            naive["last_position"] += time.process_time() - begin_cpu
            asked += 1
            worst = max(worst, float(np.abs(np.exp(expected) - grid.scores[:, t, layer].numpy()).max()))
    head = lm.model.get_output_embeddings().weight.numel() * settings.samples * exact_cells
    floor = 2 * (sum(counted) + head) / 1e9
    rate = (rate + gemm_rate()) / 2
    return {
        "fact": fact.text,
        "tokens": len(aligned.ids),
        "subject_begins_at": aligned.begin,
        "positions": settings.positions,
        "cells": every,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "naive_cells_run": asked,
        "naive_cpu_seconds": {name: found / asked * every for name, found in naive.items()},
        "cpu_ratio": {name: found / asked * every / cpu for name, found in naive.items()},
        "largest_difference": worst,
        "floor_gflop": floor,
        "gemm_gflops": rate,
        "floor_of_cpu_seconds": floor / rate / cpu,
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
    ratios = {
        positions: {
            name: sum(row["naive_cpu_seconds"][name] for row in found) / sum(row["cpu_seconds"] for row in found)
            for name in ("script", "last_position")
        }
        for positions in ("ends", "all")
        if (found := [row for row in rows if row["positions"] == positions])
    }
    document = {
        "rows": rows,
        "cpu_ratio": ratios,
        "largest_difference": max(row["largest_difference"] for row in rows),
        "memory_above_the_model_mib": peak_memory_mib() - resident,
        "machine": describe_machine(),
    }
    if args.profile:
        settings = TraceSettings(samples=args.samples, positions="ends")
        document["profile"] = profile(lm, facts_of(lm, 1)[0], settings, deviation)
    print(json.dumps({name: document[name] for name in ("cpu_ratio", "memory_above_the_model_mib")}))
    if args.out:
        args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
