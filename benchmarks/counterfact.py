"""The CounterFact facts that a model answers, as records of this project.

    python benchmarks/counterfact.py --data counterfact.jsonl --rewrites counterfact_rewrites.jsonl --out answered.jsonl

`--data` holds whole records (original fields); `--rewrites` more facts, each with one rephrasing, of which those that
are true paraphrases are taken. Their neighbours are made as CounterFact makes them: prompts of the same relation about
other subjects with the same true answer, here from the facts that are not chosen. A fact is answered when every token
of its true target is the argmax after the plain prompt; a subject occurs once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from emendo import EditRecord, EditRequest, ModelAdapter, load
from emendo.evaluate import score_targets

NEIGHBORS = 10


def read_counterfact(path: Path) -> list[EditRecord]:
    """All records of a file with the original fields, one a line."""
    return [_record(row) for row in _rows(path)]


def answered(lm: ModelAdapter, records: list[EditRecord]) -> list[EditRecord]:
    """Records whose true target is the argmax at every token of the plain prompt; the first of each subject."""
    first: dict[str, EditRecord] = {}
    for record in records:
        first.setdefault(record.request.subject, record)
    unique = list(first.values())
    scores = score_targets(lm, [(record.request.text, record.target_true or "") for record in unique])
    return [record for record, score in zip(unique, scores, strict=True) if score.argmax]


def split(records: list[EditRecord], part: str) -> list[EditRecord]:
    """The ``"dev"`` third or the ``"report"`` two thirds: a subject is in one of them, by its SHA-256."""
    wanted = {"dev": (0,), "report": (1, 2)}[part]
    return [r for r in records if int(hashlib.sha256(r.request.subject.encode()).hexdigest(), 16) % 3 in wanted]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _record(row: dict[str, Any]) -> EditRecord:
    fact = row["requested_rewrite"]
    paraphrases = row.get("paraphrase_prompts") or [row["rephrase_prompt"]]
    return EditRecord(
        EditRequest(fact["prompt"], fact["subject"], fact["target_new"]["str"], id=str(row["case_id"])),
        target_true=fact["target_true"]["str"],
        paraphrase_prompts=tuple(paraphrases),
        neighborhood_prompts=tuple(row.get("neighborhood_prompts", ())),
    )


def _with_neighbors(chosen: list[EditRecord], rows: list[dict[str, Any]]) -> list[EditRecord]:
    """Records without neighbours get prompts about subjects that are not edited."""
    edited = {record.request.subject for record in chosen}
    relation: dict[str, tuple[str, str]] = {}
    others: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        fact = row["requested_rewrite"]
        kind = fact["relation_id"], fact["target_true"]["str"]
        relation[str(row["case_id"])] = kind
        if fact["subject"] not in edited:
            others[kind].append(fact["prompt"].replace("{}", fact["subject"]))
    return [
        record
        if record.neighborhood_prompts
        else replace(record, neighborhood_prompts=tuple(others[relation[record.request.id]][:NEIGHBORS]))
        for record in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rewrites", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rewrites = _rows(args.rewrites)
    more = [_record(row) for row in rewrites if row["rephrase_kind"] == "paraphrase"]
    records = answered(load(args.model), [*read_counterfact(args.data), *more])
    records = _with_neighbors(records, rewrites)
    with args.out.open("w", encoding="utf-8") as stream:
        for record in records:
            row = {
                **record.request.to_dict(),
                "target_true": record.target_true,
                "paraphrase_prompts": record.paraphrase_prompts,
                "neighborhood_prompts": record.neighborhood_prompts,
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    parts = {part: len(split(records, part)) for part in ("dev", "report")}
    print(f"{len(records)} facts answered: {parts}", file=sys.stderr)


if __name__ == "__main__":
    main()
