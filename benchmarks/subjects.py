"""Several facts about one subject, under one key: one value for them together, or one for each.

    python benchmarks/subjects.py --data counterfact_rewrites.jsonl --out benchmarks/results/subjects.jsonl
    python benchmarks/subjects.py --table benchmarks/results/subjects.jsonl      # what is there, as Markdown

--data is CounterFact in its original form. Taken are subjects with facts of several relations whose prompts begin with
the subject, so that all facts of a subject have one key: those with three or four first, then those with two, each in
the file's order. A run is ``METHOD MODE [NAME=VALUE ...]``; in mode ``batch`` all facts are planned at once, in
``rounds`` first the first fact of every subject, then the second ones, ..., each round on the model that the earlier
ones left, so that no two facts of a round have one key. Everything is scored once, at the end: whether all target
tokens are the argmax; whether the greedy continuation begins with the target, and whether the target ends there as
well (``generated``: `emendo.evaluate.exact_match`, by which "Berlin Hall" is not Berlin). One JSON line a run; lines
already in --out are not run again.
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

import emendo
from benchmarks.machine import describe_machine
from emendo.cli.options import parse_settings
from emendo.evaluate import evaluate_records, generation_scores, packaged_text, perplexity
from emendo.evaluate.matching import normalised_words
from emendo.io.versions import versions
from emendo.requests import EditRecord, EditRequest
from emendo.solve import frobenius_norm
from emendo.updates.update import merge_layers

RUNS = (
    "emendo batch target.shared=key",
    "emendo batch target.shared=request",
    "emendo rounds target.shared=key",
    "emendo rounds target.shared=request",
    "memit batch target.shared=key target.precision=bfloat16",
    "memit batch target.shared=request target.precision=bfloat16",
    "memit-history rounds target.shared=key target.precision=bfloat16",
    "memit-history rounds target.shared=request target.precision=bfloat16",
)


def choose(path: Path, n_subjects: int, most: int) -> list[list[EditRecord]]:
    """The facts of each subject."""
    found: dict[str, dict[str, EditRecord]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        rewrite = json.loads(line)["requested_rewrite"]
        if rewrite["prompt"].startswith("{}"):
            request = EditRequest(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"])
            record = EditRecord(request, target_true=rewrite["target_true"]["str"], relation=rewrite["relation_id"])
            found.setdefault(rewrite["subject"], {}).setdefault(rewrite["relation_id"], record)
    several = [list(facts.values())[:most] for facts in found.values() if len(facts) > 1]
    return sorted(several, key=lambda facts: -len(facts))[:n_subjects]


def measure(lm: emendo.EditableModel, run: str, subjects: Sequence[Sequence[EditRecord]]) -> dict[str, Any]:
    """Write all facts, score them at the end, and take them back."""
    method, mode, *pairs = run.split()
    session = emendo.EditSession(lm)
    rounds = [[facts[rank] for facts in subjects if rank < len(facts)] for rank in range(max(map(len, subjects)))]
    order = [record for part in rounds for record in part]
    unreached: list[str] = []
    start = time.perf_counter()
    for batch in {"batch": [order], "rounds": rounds}[mode]:
        plan = session.plan([record.request for record in batch], method, settings=parse_settings(pairs))
        unreached += [
            record.request.text for record, trace in zip(batch, plan.targets, strict=True) if not trace.argmax
        ]
        session.apply(plan)
    seconds = time.perf_counter() - start
    scored = evaluate_records(lm, order)
    texts = generation_scores(lm, order, chat=False, new_tokens=8)
    hits = [record.efficacy[0] for record in texts.records]
    argmax = [bool(record.efficacy[0].target.argmax) for record in scored.records]
    total = merge_layers([part for update in session.applied_updates for part in update.layers])
    found = {
        "argmax": sum(argmax),
        "generated": sum(answer.exact for answer in hits),
        "ES": scored.scores.ES,
        "unreached": unreached,
        "perplexity": perplexity(lm, packaged_text()).value,
        "relative_norm": max(
            frobenius_norm(part.residuals, part.dual_keys) / float(lm.base_weight(part.layer).double().norm())
            for part in total
        ),
        "seconds": seconds,
        "facts": [
            {
                "prompt": record.request.text,
                "target": record.request.target,
                "argmax": hit,
                "said": answer.text,
                "generated": answer.exact,
            }
            for record, hit, answer in zip(order, argmax, hits, strict=True)
        ],
    }
    session.rollback()
    assert all(session.verify_rolled_back().values())
    return found


def begins(fact: dict[str, Any]) -> bool:
    """Whether what was said begins with the target's words."""
    wanted = normalised_words(fact["target"])
    return normalised_words(fact["said"])[: len(wanted)] == wanted


def markdown(rows: list[dict[str, Any]]) -> str:
    """The runs as a table."""
    first = rows[0]
    lines = [
        f"{first['n']} facts of {first['subjects']} subjects; before: argmax {first['before']['argmax']}, ES "
        f"{first['before']['ES']:.1f}, perplexity {first['before']['perplexity']:.2f}",
        "",
        "| run | argmax | begins with it | and ends there | ES | not reached by the search | perplexity × | ‖ΔW‖/‖W‖ |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| `{row['run']}` | {row['error'].split(':')[0]} |" + " |" * 6)
            continue
        ratio = row["perplexity"] / row["before"]["perplexity"]
        lines.append(
            f"| `{row['run']}` | {row['argmax']} | {sum(map(begins, row['facts']))} | {row['generated']} | "
            f"{row['ES']:.1f} | {len(row['unreached'])} | {ratio:.3f} | {row['relative_norm']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="METHOD MODE [NAME=VALUE ...]; default: see RUNS")
    parser.add_argument("--data", type=Path, help="CounterFact, one record a line")
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--most", type=int, default=4, help="facts of a subject")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, default=Path("subjects.jsonl"))
    parser.add_argument("--table", type=Path, help="print the rows of a file as Markdown, and do nothing else")
    args = parser.parse_args()
    if args.table is not None:
        print(markdown([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return
    if args.data is None:
        parser.error("--data is needed: CounterFact, such as counterfact.jsonl")
    subjects = choose(args.data, args.subjects, args.most)
    everything = [record for facts in subjects for record in facts]
    lm = emendo.load(args.model)
    base = evaluate_records(lm, everything)
    before = {
        "argmax": sum(bool(record.efficacy[0].target.argmax) for record in base.records),
        "generated": sum(
            record.efficacy[0].exact for record in generation_scores(lm, everything, chat=False, new_tokens=8).records
        ),
        "ES": base.scores.ES,
        "perplexity": perplexity(lm, packaged_text()).value,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.out.exists():
        done = {row["run"] for row in map(json.loads, args.out.read_text(encoding="utf-8").splitlines())}
    for run in args.runs or RUNS:
        if run in done:
            continue
        try:
            row = measure(lm, run, subjects)
        except emendo.EmendoError as error:  # a failure is a result: it is reported, not left out
            row = {"error": f"{type(error).__name__}: {error}"}
        row = {
            "run": run,
            "subjects": len(subjects),
            "n": len(everything),
            "data": args.data.name,
            "before": before,
            **row,
            "machine": describe_machine(),
            "versions": versions(),
        }
        with args.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(run, row.get("error", f"argmax {row.get('argmax')}, generated {row.get('generated')}"), flush=True)


if __name__ == "__main__":
    main()
