"""What `emendo see` promises, measured on a batch edit of the packaged demo facts.

One plan of all facts, nothing written. Each promise has its number:

* algebra: M with Mᵢⱼ = qᵢ · kⱼ against the identity; Σ aᵢ rᵢ against the dense ΔW k at keys of prompts, in float64
* completeness: Σ Aᵢ against the change of the answer's log-probability, on prompts of the facts and their paraphrases
* the largest contributor against leave-one-out over all edits, where the answer changes by more than 0.5 nats
* time of one prompt with all edits, and with 1,000 synthetic ones; tokens a second of a scan; `emendo see` alone
* the weights, bit for bit as before

Times are of the processor, on the threads that the machine's description names.

    python benchmarks/seeing.py --out benchmarks/results/seeing.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine, gemm_gflops
from emendo import EditableModel, EditSession, load
from emendo.attribution import Asked, EditSet, ask, attribute, cross_firing, edits_of, leave_out, scan
from emendo.attribution.edits import Edit
from emendo.datasets import load_records
from emendo.models.hooks import Capture, recording
from emendo.requests import EditRecord

SYNTHETIC = 1000


def algebra(lm: EditableModel, edits: EditSet, records: list[EditRecord]) -> dict[str, float]:
    """Largest deviation of M from the identity, and of Σ aᵢ rᵢ from ΔW k relative to its largest element."""
    capture = Capture()
    batch = lm.batch([lm.encode(record.request.text) for record in records[:16]])
    with lm.isolated() as own, torch.no_grad(), recording(own, capture, keys=edits.layers):
        own.decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
    identity, sums = 0.0, 0.0
    for layer in edits.layers:
        identity = max(identity, float(np.abs(cross_firing(edits, layer) - np.eye(len(edits.edits))).max()))
        q, r = (part.astype(np.float64) for part in edits.factors[layer])
        keys = capture.keys[layer][batch.attention_mask.bool()].double().cpu().numpy()
        dense = keys @ (r.T @ q).T
        sums = max(sums, float(np.abs((keys @ q.T) @ r - dense).max() / np.abs(dense).max()))
    return {"m_less_identity": identity, "sum_of_writes_less_dense": sums}


def answers(lm: EditableModel, edits: EditSet, asked: list[Asked], nodes: int) -> list[dict[str, Any]]:
    """Of every prompt: the change, the error of the sum, and who is largest by attribution and by leave-one-out."""
    rows = []
    alone = [[], *([edit] for edit in range(len(edits.edits)))]
    for one in asked:
        found = attribute(lm, edits, one, nodes=nodes)
        change = found.after - found.before
        row = {"change": change, "error": found.error, "largest": int(found.by_edit.abs().argmax())}
        if abs(change) > 0.5:
            scores = leave_out(lm, edits, one, alone)
            row["left_out_largest"] = int((scores[0] - scores[1:]).abs().argmax())
            row["correlation"] = float(np.corrcoef(found.by_edit.numpy(), (scores[0] - scores[1:]).numpy())[0, 1])
        rows.append(row)
    return rows


def synthetic(edits: EditSet, count: int) -> EditSet:
    """As many edits, whose reads and writes are mixtures of real ones, and as large all together."""
    random = np.random.default_rng(0)
    mixed = random.standard_normal((count, len(edits.owner)))
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    scale = np.float32((len(edits.owner) / count) ** 0.5)
    factors = {
        layer: ((mixed @ q).astype(np.float32), scale * (mixed @ r).astype(np.float32))
        for layer, (q, r) in edits.factors.items()
    }
    made = tuple(Edit(str(number), ({"prompt": str(number)},), 0, whole=False) for number in range(count))
    return EditSet(made, np.arange(count), factors, None)


def cpu_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def alone_seconds(path: Path) -> dict[str, float]:
    """`emendo see` of an update file without a model, as a process of its own: the median of three."""
    found = []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(3):
            before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [sys.executable, "-m", "emendo", "see", str(path), "--out", out, "--overwrite", "-q", "--json"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            found.append({"cpu_seconds": cpu, "seconds": time.perf_counter() - begin})
    return sorted(found, key=lambda row: row["cpu_seconds"])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="emmet", help="one that holds edits with equality, for M = I")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=16, help="points of the quadrature")
    parser.add_argument("--keep", type=Path, help="folder for the update")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    lm = load(args.model)
    digest = lm.weights_digest()
    records = load_records("demo").records
    plan = EditSession(lm).plan([record.request for record in records], args.method)
    edits = edits_of([plan.update])
    own = [(record.request.text, record.request.target) for record in records]
    others = [(prompt, record.request.target) for record in records for prompt in record.paraphrase_prompts]
    asked = [ask(lm, prompt, target) for prompt, target in [*own, *others][: args.prompts]]
    many = synthetic(edits, SYNTHETIC)
    one_prompt = cpu_seconds(lambda: attribute(lm, edits, asked[0], nodes=args.nodes))
    text = (resources.files("emendo") / "data" / "perplexity_text.txt").read_text()
    read = scan(lm, edits, text)
    rows = answers(lm, edits, asked, args.nodes)
    large = [row for row in rows if "left_out_largest" in row]
    complete = [abs(row["error"]) <= max(0.02, 0.01 * abs(row["change"])) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = (args.keep or Path(folder)) / "update.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.update.save(path)
        without_model = alone_seconds(path)
    document = {
        "model": lm.identity(),
        "method": plan.method.to_dict(),
        "edits": len(edits.edits),
        "layers": edits.layers,
        "nodes": args.nodes,
        **algebra(lm, edits, records),
        "prompts": len(rows),
        "complete": statistics.mean(complete),
        "largest_error": max(abs(row["error"]) for row in rows),
        "prompts_with_large_change": len(large),
        "largest_is_that_of_leave_one_out": statistics.mean(row["largest"] == row["left_out_largest"] for row in large),
        "lowest_correlation_with_leave_one_out": min(row["correlation"] for row in large),
        "one_prompt_cpu_seconds": one_prompt,
        "synthetic_edits": SYNTHETIC,
        "synthetic_cpu_seconds": cpu_seconds(lambda: attribute(lm, many, asked[0], nodes=args.nodes)),
        "scan_tokens": read.tokens,
        "scan_tokens_a_cpu_second": read.tokens / cpu_seconds(lambda: scan(lm, edits, text), 3),
        "without_a_model": without_model,
        "weights_as_before": lm.weights_digest() == digest,
        "gemm_gflops": gemm_gflops(),
        "machine": describe_machine(),
        "rows": rows,
    }
    print(json.dumps({name: value for name, value in document.items() if name not in ("rows", "method", "machine")}))
    if args.out:
        args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
