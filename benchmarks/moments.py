"""How fast second moments are collected, against what matrix products alone would cost.

    python benchmarks/moments.py --model demo --layers 2 3 4 5 --out moments.json

Two sources: text sampled from the model itself, and a text file (by default the sampled text written to a file, so
no data is needed). The floor counts matrix products only: the linear maps of blocks up to the highest layer, 2 d_in²
per key and layer, and for sampling one full forward pass per token. Attention is left out of it, so a ratio of 1 is
out of reach. The rate of matrix products is measured in the same run, before and after, because it depends on who
else uses the machine; the load average and CPU seconds are recorded for the same reason.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emendo.io.versions import versions
from emendo.models import EditableModel, load
from emendo.statistics import MomentSpec, SelfSampledCorpus, TextCorpus, collect_moments
from emendo.statistics.collect import TOKEN_BUDGET
from emendo.statistics.sample import SAMPLE_ROWS


@dataclass(frozen=True)
class Timed:
    """Seconds by the clock and of all this process's threads."""

    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> tuple[Any, Timed]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, Timed(time.perf_counter() - wall, time.process_time() - cpu)


def product_rate(lm: EditableModel, rows: int, layer: int, repeats: int = 15) -> float:
    """FLOP/s of the down-projection on `rows` keys: the fastest of several products."""
    weight = lm.weight(layer)
    keys = torch.randn(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    seconds = [timed(lambda: keys @ weight.T)[1].wall for _ in range(repeats)]
    return 2 * rows * weight.numel() / min(seconds)


def gram_rate(lm: EditableModel, layer: int, repeats: int = 5) -> float:
    """FLOP/s of Kᵀ K on one forward pass worth of keys."""
    keys = torch.randn(TOKEN_BUDGET, lm.d_in(layer), device=lm.device)
    seconds = [timed(lambda: keys.T @ keys)[1].wall for _ in range(repeats)]
    return 2 * keys.shape[0] * keys.shape[1] ** 2 / min(seconds)


def rates(lm: EditableModel, layer: int) -> dict[str, float]:
    return {
        "sampling": product_rate(lm, SAMPLE_ROWS, layer),
        "capture": product_rate(lm, TOKEN_BUDGET, layer),
        "gram": gram_rate(lm, layer),
    }


def floor_flops(lm: EditableModel, layers: Sequence[int], keys: int) -> dict[str, float]:
    """Matrix-product FLOPs of each stage: two for every weight and token."""

    def linear(block: int) -> int:
        return sum(p.numel() for p in lm.blocks[block].parameters() if p.ndim == 2)

    head = lm.model.get_output_embeddings().weight.numel()
    return {
        "sampling": 2.0 * keys * (sum(map(linear, range(lm.n_layers))) + head),
        "capture": 2.0 * keys * sum(map(linear, range(max(layers) + 1))),
        "gram": 2.0 * keys * sum(lm.d_in(layer) ** 2 for layer in layers),
    }


def result(
    spec: MomentSpec,
    spent: Timed,
    tokens: int,
    flops: dict[str, float],
    before: dict[str, float],
    after: dict[str, float],
) -> dict[str, Any]:
    stages = [stage for stage in flops if stage != "sampling" or isinstance(spec.corpus, SelfSampledCorpus)]
    floor = sum(flops[stage] / ((before[stage] + after[stage]) / 2) for stage in stages)
    return {
        "corpus": spec.corpus.describe(),
        "tokens": tokens,
        "wall_s": round(spent.wall, 2),
        "cpu_s": round(spent.cpu, 2),
        "tokens_per_s": round(tokens / spent.wall, 1),
        "floor_flops": {stage: flops[stage] for stage in stages},
        "floor_s": round(floor, 2),
        "wall_over_floor": round(spent.wall / floor, 2),
    }


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def measure(
    lm: EditableModel, layers: Sequence[int], tokens: int | None, length: int, text: Path | None
) -> dict[str, Any]:
    flops = None
    report: dict[str, Any] = {"peak_rss_after_loading_mb": peak_rss_mb(), "results": {}}
    with tempfile.TemporaryDirectory() as folder:
        for source in ("text", "self"):
            spec = MomentSpec(SelfSampledCorpus(), tokens=tokens, length=length)
            count = spec.tokens_for(lm, layers)
            flops = floor_flops(lm, layers, count)
            if source == "text":
                path = text or write_sample(lm, Path(folder) / "sample.jsonl", count, length)
                spec = MomentSpec(TextCorpus(path), tokens=count, length=length)
            before = rates(lm, max(layers))
            _, spent = timed(lambda spec=spec: collect_moments(lm, layers, spec))
            after = rates(lm, max(layers))
            report["results"][source] = result(spec, spent, count, flops, before, after)
            report["results"][source]["product_rate_gflops"] = {
                stage: [round(before[stage] / 1e9), round(after[stage] / 1e9)] for stage in before
            }
            report["results"][source]["peak_rss_mb"] = peak_rss_mb()
    return report


def write_sample(lm: EditableModel, path: Path, tokens: int, length: int) -> Path:
    """Sampled text as JSONL, repeated until it holds enough tokens: timing needs no meaning."""
    few = SelfSampledCorpus(seed=1).sequences(lm, length=length, count=32)
    rows = [json.dumps({"text": lm.decode(ids)}) for ids in few]
    repeats = 2 + 2 * tokens // (32 * length)
    path.write_text("\n".join(rows * repeats), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="hub id, folder, GGUF file or 'demo'")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--tokens", type=int, help="keys to count (default: ten for each key component)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--text", type=Path, help=".txt or .jsonl file (default: sampled text)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    lm = load(arguments.model, device=arguments.device)
    report = {
        "model": lm.name,
        "layers": arguments.layers,
        "length": arguments.length,
        "dtype": str(lm.dtype),
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg(),
        "versions": versions(),
        **measure(lm, arguments.layers, arguments.tokens, arguments.length, arguments.text),
        "load_average_after": os.getloadavg(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
