"""All methods on the same facts: CounterFact records that the model answers, one batch and sequential batches.

    python benchmarks/counterfact.py ... --out answered.jsonl
    python benchmarks/methods.py --facts answered.jsonl --out benchmarks/results/methods.jsonl
    python benchmarks/methods.py --table benchmarks/results/methods.jsonl        # what is there, as Markdown

One JSON line for each method and mode; lines already in --out are not run again, so that the command can be stopped
and taken up. Scores are *final*: all facts are scored once, after the last batch. "Before" is the unedited model. A run
is ``METHOD [layers=4-8] [NAME=VALUE ...]``; with no run given, every method of the catalog and the baselines.

Target searches on the unedited model that are equal (same requests, contexts, layer, settings) are made once and
kept beside --out; `plan_seconds` counts what this run took, `shared_seconds` what searches had taken that an earlier
run had made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import emendo
from benchmarks.machine import describe_machine
from emendo.cli.options import parse_layers, parse_settings
from emendo.datasets import select
from emendo.editing.value_cache import ValueCache
from emendo.evaluate import evaluate_records, packaged_text, perplexity
from emendo.io.versions import versions
from emendo.methods import BASELINES, method_named
from emendo.requests import EditRecord
from emendo.solve import frobenius_norm
from emendo.updates.update import merge_layers

SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")
FAST = {"target.precision": "bfloat16"}
"""On every method: the search finds the same targets in half the time (docs/lab/performance.md)."""


def measure(
    lm: emendo.EditableModel, run: str, records: Sequence[EditRecord], n_batches: int, searches: Path
) -> dict[str, Any]:
    """Write the facts in batches, score them all at the end, and take them back."""
    method, *pairs = run.split()
    baseline = method in BASELINES
    settings = parse_settings(pairs) if baseline else {**FAST, **parse_settings(pairs)}
    layers = parse_layers(settings.pop("layers", None))
    size = -(-len(records) // n_batches)
    # Later batches are searched on the model that holds the earlier ones.
    memory = ValueCache([record.request for record in records[:size]], searches)
    session = emendo.EditSession(lm, targets=memory)
    seconds, reports = 0.0, []
    for begin in range(0, len(records), size):
        batch = [record.request for record in records[begin : begin + size]]
        start = time.perf_counter()
        plan = session.plan(batch, method, layers=layers, settings=settings)
        seconds += time.perf_counter() - start
        session.apply(plan.update)
        reports = plan.layers
    after = method_named(method).evaluation_prompts(records)
    scores = evaluate_records(lm, after).scores
    ppl = perplexity(lm, packaged_text()).value
    total = merge_layers([part for update in session.applied_updates for part in update.layers])
    session.rollback()
    assert all(session.verify_rolled_back().values())
    norms = [
        frobenius_norm(part.residuals, part.dual_keys) / float(lm.weight(part.layer).double().norm()) for part in total
    ]
    return {
        **{name: getattr(scores, name) for name in SCORES},
        "intervals": {name: scores.intervals[name] for name in SCORES},
        "perplexity": ppl,
        "layers": [part.layer for part in total],
        "relative_norm": norms,
        "last_batch": [asdict(report) | {"solves": []} for report in reports],
        "plan_seconds": seconds,
        "shared_seconds": memory.shared_seconds,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown tables, one for each number of batches."""
    lines = []
    for n_batches in sorted({row["batches"] for row in rows}):
        same = [row for row in rows if row["batches"] == n_batches]
        before = same[0]["before"]
        lines += [
            f"{same[0]['n']} facts in {n_batches} batch(es); before: "
            + ", ".join(f"{name} {before[name]:.1f}" for name in SCORES),
            "",
            "| method | " + " | ".join(SCORES) + " | S, 95 % interval | perplexity × | ‖ΔW‖/‖W‖ | planning, s |",
            "|---" * (len(SCORES) + 5) + "|",
        ]
        for row in same:
            if "error" in row:
                lines.append(f"| `{row['run']}` | " + row["error"] + " |" * (len(SCORES) + 4))
                continue
            cells = [f"{row[name]:.1f}" for name in SCORES]
            cells += ["{:.1f} to {:.1f}".format(*row["intervals"]["S"])]
            cells += [
                f"{row['perplexity'] / before['perplexity']:.3f}",
                f"{max(row['relative_norm'], default=0.0):.2f}",
            ]
            shared = row.get("shared_seconds")
            told = "–" if row["plan_seconds"] is None else f"{row['plan_seconds']:.0f}"
            cells += [f"{told} + {shared:.0f} shared" if shared else told]
            lines.append(f"| `{row['run']}` | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="METHOD [NAME=VALUE ...]; default: every method and baseline")
    parser.add_argument("--facts", type=Path, help="records that the model answers (benchmarks/counterfact.py)")
    parser.add_argument("--part", choices=("dev", "report"), default="report", help="disjoint by subject")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--batches", default="1,10", help="1: one batch; 10: ten in sequence; both by default")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--table", type=Path, help="print the rows of a file as Markdown, and do nothing else")
    args = parser.parse_args()
    if args.table is not None:
        print(markdown([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return
    if args.facts is None:
        parser.error("--facts is needed: python benchmarks/counterfact.py makes such a file")
    lm = emendo.load(args.model)
    records = select(emendo.read_records(args.facts), part=args.part, seed=None, unique_subjects=False)[: args.n]
    if len(records) < args.n:
        sys.exit(f"only {len(records)} facts in the part; ask for fewer (-n {len(records)})")
    base = evaluate_records(lm, records).scores
    base_ppl = perplexity(lm, packaged_text()).value
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.out.exists():
        done = {(row["run"], row["batches"], row["n"]) for row in map(json.loads, args.out.read_text().splitlines())}
    for n_batches in map(int, args.batches.split(",")):
        for run in args.runs or [*emendo.METHODS, *BASELINES]:
            if (run, n_batches, args.n) in done:
                continue
            try:
                row = measure(lm, run, records, n_batches, args.out.with_suffix(".targets"))
            except emendo.EmendoError as error:  # a failure is a result: it is reported, not left out
                row = {"error": f"{type(error).__name__}: {error}"}
            row = {
                "run": run,
                "batches": n_batches,
                "n": args.n,
                "part": args.part,
                "before": {name: getattr(base, name) for name in SCORES} | {"perplexity": base_ppl},
                **row,
                "machine": describe_machine(),
                "versions": versions(),
            }
            with args.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            shown = " ".join(f"{name} {row[name]:5.1f}" for name in SCORES if row.get(name) is not None)
            tail = row.get("error") or f"ppl x{row['perplexity'] / base_ppl:.3f} {row['plan_seconds']:.0f} s"
            print(f"{n_batches:3d} {run:50s} {shown} {tail}", flush=True)


if __name__ == "__main__":
    main()
