"""What the gate measures on good edits and on a collapsing sequence: the numbers behind its default limits.

    python benchmarks/collapse.py --out benchmarks/results/collapse.jsonl --updates updates rome emendo
    python benchmarks/gate.py --updates updates --out benchmarks/results/gate.jsonl

Good edits: the first ten packaged demo facts in one batch, with each method of `--good`. The collapse: the update files
of `collapse.py`, the first so many together. One line for each, the first describes the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.collapse import FACTS
from benchmarks.machine import describe_machine
from emendo import EditRecord, EditRequest, EditSession, ModelUpdate, Plan, load, read_records
from emendo.gate import default_config, run_gate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", nargs="*", default=["emendo"])
    parser.add_argument("--updates", type=Path, help="As collapse.py wrote them: a folder for each method.")
    parser.add_argument("--prefixes", type=int, nargs="*", default=[2, 3, 8, 11])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    session = EditSession(load("demo"))
    facts = resources.files("emendo") / "data" / "demo_facts.jsonl"
    with resources.as_file(facts) as path:
        ten = read_records(path)[:10]
    by_prompt = {record.request.text: record for record in read_records(FACTS)}
    with args.out.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps({"machine": describe_machine(), "model": session.lm.name}) + "\n")
        for method in args.good:
            settings = {"target.precision": "bfloat16"}
            plan = session.plan([record.request for record in ten], method, settings=settings)
            write(stream, f"{method}, 10 facts in one batch", session, plan, ten)
        for folder in sorted(args.updates.iterdir()) if args.updates else []:
            updates = [ModelUpdate.load(path) for path in sorted(folder.iterdir())]
            for count in args.prefixes:
                records = [by_prompt[text(update)] for update in updates[:count]]
                write(stream, f"{folder.name}, {count} edits one by one", session, updates[:count], records)


def text(update: ModelUpdate) -> str:
    """The plain prompt of the one fact of an update."""
    request = update.info["requests"][0]
    return EditRequest(request["prompt"], request["subject"], request["target"]).text


def write(
    stream: Any, run: str, session: EditSession, edit: Plan | Sequence[ModelUpdate], records: list[EditRecord]
) -> None:
    """One line: what the default gate measures."""
    report = run_gate(session, edit, records, default_config())
    checks = {check.name: {"measured": check.measured, "n": check.n} for check in report.checks}
    stream.write(json.dumps({"run": run, "checks": checks, "seconds": report.seconds}) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
