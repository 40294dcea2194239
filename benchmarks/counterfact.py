"""The CounterFact facts that a model answers, as records of this project.

    python benchmarks/counterfact.py --data counterfact.jsonl --rewrites counterfact_rewrites.jsonl --out answered.jsonl

`--data` holds whole records (original fields); `--rewrites` more facts, each with one rephrasing, of which those that
are true paraphrases are taken. Their neighbours are made as CounterFact makes them: prompts of the same relation about
other subjects with the same true answer, here from the facts that are not chosen. A fact is answered when every token
of its true target is the argmax after the plain prompt; a subject occurs once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emendo import EditRecord, load
from emendo.datasets import load_records, part_of, select
from emendo.evaluate import answered

NEIGHBORS = 10


def with_neighbors(chosen: Sequence[EditRecord], others: Sequence[EditRecord]) -> list[EditRecord]:
    """Records without neighbours get prompts about subjects that are not edited."""
    edited = {record.request.subject for record in chosen}
    prompts: dict[tuple[str | None, str | None], list[str]] = defaultdict(list)
    for record in others:
        if record.request.subject not in edited:
            prompts[record.relation, record.target_true].append(record.request.text)
    return [
        record
        if record.neighborhood_prompts
        else replace(record, neighborhood_prompts=tuple(prompts[record.relation, record.target_true][:NEIGHBORS]))
        for record in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rewrites", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    whole = load_records(args.data, format="counterfact").records
    rewrites = load_records(args.rewrites, format="counterfact").records
    candidates = select([*whole, *(record for record in rewrites if record.paraphrase_prompts)], seed=None)
    records = with_neighbors(answered(load(args.model), candidates), rewrites)
    with args.out.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
    parts = [part_of(record.request.subject) for record in records]
    print(f"{len(records)} facts answered: {parts.count('dev')} dev, {parts.count('report')} report", file=sys.stderr)


if __name__ == "__main__":
    main()
