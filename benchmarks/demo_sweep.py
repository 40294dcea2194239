"""Choose the demo model's settings by measurement on held-apart facts (benchmarks/data/dev_facts.jsonl).

Every run edits all facts in one batch, scores them, and takes the edit back. A target search that an earlier run made
with the same contexts, layer and settings is reused, since it depends on nothing else. Runs are given as texts
``METHOD LAYERS [NAME=VALUE ...]``; one JSON line a run goes to --out.

    python benchmarks/demo_sweep.py --out sweep.jsonl "emmet 4" "emmet 5 target.argmax_steps=4" "memit 3-7"
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import emendo
import emendo.editing.edit_run
from emendo.cli.options import parse_layers, parse_settings
from emendo.evaluate import evaluate_records, packaged_text, perplexity

DEV_FACTS = Path(__file__).parent / "data" / "dev_facts.jsonl"


def reuse_targets() -> None:
    """Let the pipeline find equal target searches on the unedited model only once in this process."""
    search, known = emendo.editing.edit_run.search_values, {}

    def remembered(lm, requests, contexts, layer, settings, progress=None):
        key = (tuple(requests), tuple(contexts), layer, settings)
        if key not in known:
            known[key] = search(lm, requests, contexts, layer, settings, progress)
        return known[key]

    emendo.editing.edit_run.search_values = remembered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="METHOD LAYERS [NAME=VALUE ...]")
    parser.add_argument("--facts", type=Path, default=DEV_FACTS)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    records = emendo.read_records(args.facts)
    reuse_targets()
    lm = emendo.load(args.model)
    session = emendo.EditSession(lm)
    base = evaluate_records(lm, records).scores
    base_ppl = perplexity(lm, packaged_text()).value
    with args.out.open("a", encoding="utf-8") as stream:
        for run in args.runs:
            method, layers, *settings = run.split()
            begin = time.perf_counter()
            plan = session.plan(
                [record.request for record in records],
                method,
                layers=parse_layers(layers),
                settings=parse_settings(settings),
            )
            planned = time.perf_counter() - begin
            with session.applied(plan.update):
                scores = evaluate_records(lm, records).scores
                ppl = perplexity(lm, packaged_text()).value
            row = {
                "run": run,
                "n": len(records),
                "before": {name: getattr(base, name) for name in ("ES", "PS", "NS")},
                **{name: getattr(scores, name) for name in ("ES", "PS", "NS", "S", "EA", "PA", "NA")},
                "perplexity_ratio": ppl / base_ppl,
                "relative_norm": [layer.relative_norm for layer in plan.layers],
                "relative_cost": [layer.relative_cost for layer in plan.layers],
                "memorized": [layer.solves[0].memorized for layer in plan.layers],
                "evaluations": sum(len(t.losses) for t in plan.targets) / len(records),
                "nll": sum(t.nll for t in plan.targets) / len(records),
                "plan_seconds": planned,
            }
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(
                f"{run:60s} ES {scores.ES:5.1f} PS {scores.PS:5.1f} NS {scores.NS:5.1f} (before {base.NS:.1f}) "
                f"S {scores.S:5.1f} PA {scores.PA:5.1f} ppl {row['perplexity_ratio']:.4f} "
                f"norm {max(row['relative_norm']):.2f} steps {row['evaluations']:.1f} {planned:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
