"""What sequential editing does to a model, edit by edit: the monitor's signals beside the harm they should announce.

    python benchmarks/collapse.py --out benchmarks/results/collapse.jsonl rome emendo

Each method writes facts one after another, each on the model edited so far, and after every one come: the signals of
`emendo.gate.CollapseMonitor`; perplexity of the packaged text over its value before; the share of all facts written so
far that the model still answers as written (by argmax, and by probability against the true target); and the share of
neighbours, of facts that are never edited, that keep their true target. The first line describes the run.

The facts are those whose subject opens the prompt: there its key lies on the attention sink, where an edit that holds
at the plain prompt, such as ROME's, disturbs every text (docs/lab/demo-model.md).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from emendo import EditRecord, EditSession, evaluate_records, load, perplexity, read_records
from emendo.evaluate import packaged_text
from emendo.gate import CollapseMonitor
from emendo.requests import SLOT

FACTS = Path(__file__).parent / "data" / "dev_facts.jsonl"
SETTINGS = {"target.precision": "bfloat16", "target.argmax_steps": 5, "contexts.scheme": "fixed"}
"""For every method: a search over fewer contexts that stops early takes a tenth of the time of ROME's own."""

HELD_OUT = 8
"""Facts at the end of the file that are never edited; their neighbours are watched."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--edits", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=Path, help="Folder for the update files, one a step.")
    args = parser.parse_args()
    records = read_records(FACTS)
    edited = [record for record in records[:-HELD_OUT] if record.request.prompt.startswith(SLOT)][: args.edits]
    watched = [replace(record, paraphrase_prompts=()) for record in records[-HELD_OUT:]]
    lm = load("demo")
    with args.out.open("w", encoding="utf-8") as stream:
        head = {"machine": describe_machine(), "model": lm.name, "settings": SETTINGS, "watched": len(watched)}
        stream.write(json.dumps(head) + "\n")
        for method in args.methods:
            session = EditSession(lm)
            for row in sequence(session, method, edited, watched, args.updates):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                stream.flush()
            session.rollback()
            assert all(session.verify_rolled_back().values())


def sequence(
    session: EditSession, method: str, edited: list[EditRecord], watched: list[EditRecord], folder: Path | None
) -> Any:
    """One row after every edit of a sequence."""
    lm, monitor = session.lm, CollapseMonitor(session)
    # Only the edited prompt: what is asked is whether the fact is still there.
    asked = [replace(record, paraphrase_prompts=(), neighborhood_prompts=()) for record in edited]
    before = perplexity(lm, packaged_text()).value
    yield {"method": method, "step": 0, "perplexity": before, **neighbors(session, watched)}
    for step, record in enumerate(edited, start=1):
        begin = time.perf_counter()
        plan = session.plan([record.request], method, settings=SETTINGS)
        planned = time.perf_counter()
        session.apply(plan.update)
        if folder is not None:
            plan.update.save(folder / method / f"{step:03d}.safetensors")
        looked = time.perf_counter()
        monitor.observe(plan)
        observed = time.perf_counter()
        scores = evaluate_records(lm, asked[:step]).scores
        value = perplexity(lm, packaged_text()).value
        yield {
            "method": method,
            "step": step,
            "fact": record.request.label,
            **monitor.history[-1].to_dict(),
            "perplexity": value,
            "perplexity_ratio": value / before,
            "retained_argmax": scores.EA,
            "retained_beats_true": scores.ES,
            **neighbors(session, watched),
            "planning_s": planned - begin,
            "monitor_s": observed - looked,
        }


def neighbors(session: EditSession, watched: list[EditRecord]) -> dict[str, float | None]:
    """Neighbours of facts that are never edited: true target by probability (NS) and by argmax (NA), in percent."""
    scores = evaluate_records(session.lm, watched).scores
    return {"NS": scores.NS, "NA": scores.NA}


if __name__ == "__main__":
    main()
